"""Runs the composed model over micro-batches through megatron-core's schedules (any number of pipeline stages)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from loongforge.model.vlm import Inputs, VisionLanguageModel
from loongforge.parallel.groups import Groups

Result = TypeVar("Result")


class Runner:
    """Forward and backward passes of one rank.

    Args:
        model: This rank's parts.
        groups: Of all components; the LLM's pipeline carries the activations.
    """

    def __init__(self, model: VisionLanguageModel, groups: Groups) -> None:
        self.model, self.groups = model, groups
        self.pipelined = groups.layout.pp > 1
        self.device = next(model.llm.parameters()).device

    def _schedule(self, micro_batches: Sequence[Inputs], step: Callable[..., Any], **options: Any) -> list[Any]:
        num_samples, length = micro_batches[0].tokens.shape
        config = self.model.config
        if self.pipelined:
            options["p2p_communicator"] = P2PCommunicator(pp_group=self.groups.llm.pp, config=config)
        run = get_forward_backward_func(pp_size=self.groups.layout.pp, vp_size=None)
        return run(
            forward_step_func=step,
            data_iterator=iter(micro_batches),
            model=self.model,
            num_microbatches=len(micro_batches),
            seq_length=length,
            micro_batch_size=num_samples,
            pg_collection=self.groups.llm,
            **options,
        )

    def train(self, micro_batches: Sequence[Inputs], num_label_tokens: int) -> torch.Tensor:
        """Adds the gradient of `sum of losses / num_label_tokens` to the model's gradients.

        Args:
            micro_batches: This rank's, all of one shape `[B, S]`.
            num_label_tokens: Labelled tokens of the whole global batch, over all ranks.

        Returns:
            float64 scalar: this rank's part of that quotient; 0 except on the last pipeline stage.
        """
        one = torch.ones((), dtype=torch.int, device=self.device)

        def step(batches: Iterator[Inputs], model: VisionLanguageModel) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(batches)

            def loss(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
                mean = model.losses(hidden, batch.labels).sum() / num_label_tokens
                return mean, one, mean.detach().double()

            return model(batch), loss

        parts = self._schedule(micro_batches, step)
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def forward(self, micro_batches: Sequence[Inputs], consume: Callable[[torch.Tensor, Any], Result]) -> list[Result]:
        """Forward passes only.

        Args:
            micro_batches: This rank's, all of one shape `[B, S]`.
            consume: Called on the last stage with the hidden states `[S, B, H]` of a micro-batch, and that batch.

        Returns:
            What `consume` returned, in order; empty on other stages.
        """

        def step(batches: Iterator[Inputs], model: VisionLanguageModel) -> tuple[torch.Tensor, Callable[..., Any]]:
            batch = next(batches)
            return model(batch), lambda hidden, non_loss_data: consume(hidden, batch)

        was_training = self.model.training
        self.model.eval()
        try:
            return self._schedule(micro_batches, step, forward_only=True, collect_non_loss_data=True)
        finally:
            self.model.train(was_training)

    def from_last_stage(self, tensor: torch.Tensor) -> torch.Tensor:
        """The last pipeline stage's tensor on every stage of the pipeline; shapes and dtypes agree."""
        if self.pipelined:
            group = self.groups.llm.pp
            dist.broadcast(tensor, src=dist.get_process_group_ranks(group)[-1], group=group)
        return tensor
