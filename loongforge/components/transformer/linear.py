"""Tensor-parallel linear layers that are plain ones where there is nothing to divide."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear


class ColumnLinear(ColumnParallelLinear):
    """Output features divided over the group. On one rank: a native linear, bias added inside the product."""

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[..., in]` -> `[..., out / tp]`, and the bias that is still to be added, if any."""
        if self.tp_group.size() > 1:
            return super().forward(input_, weight, runtime_gather_output)
        return F.linear(input_, self.weight if weight is None else weight, self.bias), None


class UnbiasedColumnLinear(ColumnLinear):
    """Without a bias where megatron-core gives all linear layers of a block one (q, k, v of some ViTs)."""

    def __init__(self, *args: Any, bias: bool = True, **options: Any) -> None:
        super().__init__(*args, bias=False, **options)


class RowLinear(RowParallelLinear):
    """Input features divided over the group; sums the ranks' parts. On one rank: a native linear."""

    def forward(self, input_: torch.Tensor, *args: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[..., in / tp]` -> `[..., out]`, and the bias that is still to be added, if any."""
        if self.tp_group.size() > 1:
            return super().forward(input_, *args)
        return F.linear(input_, self.weight, self.bias), None
