"""What a step's record of routers looks like; every rank knows it, whichever layers it holds. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RouterSpec:
    """Of a decoder with experts."""

    layers: int
    """All of its layers, with experts or without."""
    experts: int
    """Of a layer."""
    per_token: int
    """Experts that a token takes."""
    loss_weight: float
    """Of the loss that evens out the experts' load; 0: it is not added."""

    def counts_first(self, micro_batches: int, stages: int) -> bool:
        """Whether the loads of a step have to be counted in a pass of their own, without gradients: the loss is added,
        and a backward pass begins before the last forward pass has ended.

        Args:
            micro_batches: Of a replica in a step.
            stages: Of the pipeline.
        """
        return self.loss_weight > 0 and (micro_batches > 1 or stages > 1)
