"""How the tokens of a step are spread over experts, and the loss that evens it out (arXiv 2101.03961, equations 4-6).

With f the share of tokens that take an expert and P the mean probability that the router gives it, both over all tokens
of the step and over all layers, the loss is `experts * sum(f P)`: what transformers' `load_balancing_loss_func` gives
for the global batch in one forward pass. A product of means over parts of a batch is not the mean of the parts'
products, so nothing smaller than the step gives a loss that no layout changes (arXiv 2501.11873 balances over the
global batch too, for what it does to the experts). f has no gradient: once it is known, every token's part of the
loss is linear in its own probabilities, and no rank needs more of the others than f.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from loongforge.components.transformer.router_spec import RouterSpec


class Routing:
    """The record of a step's routers on this rank, and what it makes of their gradients.

    Args:
        spec: Of the decoder.
    """

    def __init__(self, spec: RouterSpec) -> None:
        self.spec = spec
        self.loads: torch.Tensor | None = None
        """`[experts]`: how many tokens take each expert, over all layers, ranks and micro-batches of the step; set
        before the first backward pass where the loss is added."""
        self.clear()

    def clear(self) -> None:
        """Forgets all passes so far."""
        self._rows: torch.Tensor | None = None
        self._probabilities: torch.Tensor | None = None
        self._noting = False

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Forward passes inside count; those that a backward pass repeats (recomputation) are outside."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def watch(self, layer: int, probabilities: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """A router's probabilities, to go on with: their gradient gets the loss's part.

        Args:
            layer: From 0.
            probabilities: float32 `[T, experts]`.
            real: bool `[T]`: tokens that are no padding; None: all.
        """
        if self._noting:
            kept = probabilities.detach() if real is None else probabilities.detach() * real[:, None]
            if self._probabilities is None:
                self._probabilities = kept.new_zeros(self.spec.layers, self.spec.experts)
            self._probabilities[layer] += kept.sum(0)
        if self.spec.loss_weight and torch.is_grad_enabled():
            balanced: torch.Tensor = _Balanced.apply(probabilities, real, self)
            return balanced
        return probabilities

    def note(self, layer: int, chosen: torch.Tensor, real: torch.Tensor | None) -> None:
        """Counts the experts `[T, k]` that tokens have taken."""
        if not self._noting:
            return
        if self._rows is None:
            shape = (self.spec.layers, self.spec.experts)
            self._rows = torch.zeros(shape, dtype=torch.int64, device=chosen.device)
        ones = torch.ones_like(chosen) if real is None else real[:, None].expand_as(chosen).long()
        self._rows[layer].scatter_add_(0, chosen.flatten(), ones.flatten())

    def noted(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Of this rank's passes since `clear`, `[layers, experts]` each: int64 tokens that took each expert, and
        float32 sums of their probabilities."""
        shape = (self.spec.layers, self.spec.experts)
        rows = torch.zeros(shape, dtype=torch.int64, device=device) if self._rows is None else self._rows
        sums = torch.zeros(shape, device=device) if self._probabilities is None else self._probabilities
        return rows, sums

    def slope(self) -> torch.Tensor:
        """float32 `[experts]`: derivative of the weighted loss by each probability of a token in a layer."""
        assert self.loads is not None, "the loads of the step are to be known before a backward pass"
        tokens = self.loads.sum() / self.spec.per_token  # in all layers
        return (self.spec.loss_weight * self.spec.experts * self.loads / tokens.clamp(min=1) ** 2).float()


class _Balanced(torch.autograd.Function):
    """Probabilities as they are; their gradient with the loss's part."""

    @staticmethod
    def forward(ctx: Any, probabilities: torch.Tensor, real: torch.Tensor | None, routing: Routing) -> torch.Tensor:
        ctx.real, ctx.routing = real, routing
        return probabilities.view_as(probabilities)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        own = ctx.routing.slope()[None]
        return gradient + (own if ctx.real is None else own * ctx.real[:, None]), None, None
