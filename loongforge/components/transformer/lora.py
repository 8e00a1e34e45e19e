"""Low-rank adapters of tensor-parallel linear layers (LoRA, arXiv 2106.09685; peft's `LoraModel` is the reference)."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.random import get_expert_parallel_rng_tracker_name

from loongforge.config.schema import LoraConfig


class LowRank(torch.nn.Module):
    """What is added to a linear layer's output: `alpha / rank * B A x`.

    A layer that stands for several of Hugging Face's (q, k and v in one) has an A for each of them; every output
    feature belongs to one. Only tensors as wide as the ranks' sum travel between tensor-parallel ranks.

    An expert's adapter sends nothing: what holds the experts sums their outputs and the gradients of their inputs, and
    the optimizer the gradient of the matrix that the ranks hold whole (`in_parts`).

    Args:
        linear: The layer.
        settings: Rank, scale and dropout.
        owners: int64 `[out]` (this rank's): which A an output feature takes, -1: none.
        parts: How many A there are.
    """

    _mine: torch.Tensor | None

    def __init__(self, linear: Any, settings: LoraConfig, owners: torch.Tensor, parts: int) -> None:
        super().__init__()
        self.scale, self.dropout, self.rank = settings.alpha / settings.rank, settings.dropout, settings.rank
        self.column = isinstance(linear, ColumnParallelLinear)
        self.row = isinstance(linear, RowParallelLinear)
        self.group = linear.tp_group if self.column or self.row else None
        self.divided = self.group is not None and self.group.size() > 1
        self.of_expert = not getattr(linear.weight, "allreduce", True)
        self.sequence_parallel = self.divided and not self.of_expert and bool(linear.sequence_parallel)
        num_out, num_in = linear.weight.shape
        self.a = torch.nn.Parameter(linear.weight.new_empty(parts * settings.rank, num_in))
        self.b = torch.nn.Parameter(linear.weight.new_empty(num_out, settings.rank))
        self.register_buffer("_mine", _one_hot(owners, parts), persistent=False)
        self._mark()

    def _mark(self) -> None:
        """What megatron-core has to know of the parameters."""
        if self.column:
            set_tensor_model_parallel_attributes(self.b, True, 0, 1)
        if self.row:
            set_tensor_model_parallel_attributes(self.a, True, 1, 1)
        whole = self.a if self.column else self.b
        whole.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
        if self.of_expert:
            self.a.allreduce = self.b.allreduce = False  # type: ignore[attr-defined] # as the expert's own weights
            whole.in_parts = self.divided  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` as the layer gets it -> `[..., out]` to be added to what the layer gives."""
        hidden = self._across_ranks(F.linear(self._dropped(x), self.a))
        return F.linear(hidden, self.spread()) * self.scale

    def spread(self) -> torch.Tensor:
        """B over the outputs of all A side by side: `[out, parts * rank]`."""
        if self._mine is None:
            return self.b
        return (self.b[:, None] * self._mine[..., None]).flatten(1)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.dropout and self.training):
            return x
        # inputs that ranks share must lose the same features on all of them, inputs of their own others on each
        own = self.divided and (self.row or self.sequence_parallel)
        with self._random(own):
            return F.dropout(x, self.dropout)

    def _random(self, own: bool) -> AbstractContextManager[Any]:
        """Where numbers are drawn from. Ranks draw for different numbers of an expert's rows, and must not lose step in
        what they draw from together."""
        if own:
            return get_cuda_rng_tracker().fork()
        if self.of_expert:
            return get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name())
        return contextlib.nullcontext()

    def _across_ranks(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.divided or self.of_expert:
            return hidden
        if self.column:
            if self.sequence_parallel:
                return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=self.group)
            return copy_to_tensor_model_parallel_region(hidden, group=self.group)
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(hidden, group=self.group)
        return reduce_from_tensor_model_parallel_region(hidden, group=self.group)


def _one_hot(owners: torch.Tensor, parts: int) -> torch.Tensor | None:
    """bool `[out, parts]`; None where every output has the same owner."""
    if parts == 1 and bool((owners == 0).all()):
        return None
    return owners[:, None] == torch.arange(parts)


class Adaptable:
    """Comes before the class of a linear layer and gives it room for an adapter, `lora`."""

    weight: torch.Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lora: LowRank | None = None

    def adapted(self, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The layer's output for `x` with the adapter's part, if there is one."""
        return output if self.lora is None else output + self.lora(x)
