"""Tensor-parallel linear layers that are plain ones where there is nothing to divide, each with room for an adapter."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from loongforge.components.transformer.lora import Adaptable


class _Divisible(Adaptable):
    """A layer of megatron-core that its tensor-parallel ranks may divide."""

    tp_group: torch.distributed.ProcessGroup

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.divided = self.tp_group.size() > 1


class ColumnLinear(_Divisible, ColumnParallelLinear):
    """Output features divided over the group. On one rank: a native linear, bias added inside the product."""

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[..., in]` -> `[..., out / tp]`, and the bias that is still to be added, if any."""
        if self.divided:
            output, bias = super().forward(input_, weight, runtime_gather_output)
        else:
            own = self._parameters  # not by attribute, which costs more than a small product
            output, bias = F.linear(input_, own["weight"] if weight is None else weight, own["bias"]), None
        return self.adapted(output, input_), bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Of the layer and its adapter, of which B is divided as the layer is."""
        return _sharded(self, {"weight": 0, "bias": 0, "lora.b": 0}, prefix, sharded_offsets, metadata)


class UnbiasedColumnLinear(ColumnLinear):
    """Without a bias where megatron-core gives all linear layers of a block one (q, k, v of some ViTs)."""

    def __init__(self, *args: Any, bias: bool = True, **options: Any) -> None:
        super().__init__(*args, bias=False, **options)


class RowLinear(_Divisible, RowParallelLinear):
    """Input features divided over the group; sums the ranks' parts. On one rank: a native linear."""

    def forward(self, input_: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[..., in / tp]` -> `[..., out]`, and the bias that is still to be added, if any."""
        if self.divided:
            output, bias = super().forward(input_, *args)
        else:
            own = self._parameters
            output, bias = F.linear(input_, own["weight"], own["bias"]), None
        return self.adapted(output, input_), bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Of the layer and its adapter, of which A is divided as the layer is."""
        return _sharded(self, {"weight": 1, "lora.a": 1}, prefix, sharded_offsets, metadata)


class WholeLinear(Adaptable, torch.nn.Linear):
    """A linear layer that every rank holds whole."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]`."""
        return self.adapted(super().forward(input), input)


def _sharded(module: Any, axes: dict[str, int], prefix: str, offsets: Any, metadata: Any) -> dict[str, Any]:
    return make_sharded_tensors_for_checkpoint(
        module.state_dict(prefix="", keep_vars=True),
        prefix,
        axes,
        offsets,
        tp_group=module.tp_group,
        dp_cp_group=metadata["dp_cp_group"],
    )
