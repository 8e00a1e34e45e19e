"""Cross-attention whose heads are divided over tensor-parallel ranks."""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from loongforge.components.transformer.linear import ColumnLinear, RowLinear
from loongforge.kernels import ops


class CrossAttention(MegatronModule):
    """Queries of one sequence attend to keys and values of another, all of them to all.

    Args:
        config: From `linear_config`.
        group: Tensor-parallel ranks.
        width: Of queries, keys, values and output.
        heads: Over all ranks.
        head_dim: Width of a head.
        bias: Of the four linear maps.
    """

    def __init__(
        self,
        config: TransformerConfig,
        group: torch.distributed.ProcessGroup,
        *,
        width: int,
        heads: int,
        head_dim: int,
        bias: bool,
    ) -> None:
        super().__init__(config)
        self.tp_group, self.head_dim = group, head_dim
        inner = heads * head_dim
        shared = dict(config=config, init_method=torch.nn.init.zeros_, bias=bias, tp_group=group)
        self.query = ColumnLinear(width, inner, gather_output=False, **shared)
        self.key = ColumnLinear(width, inner, gather_output=False, **shared)
        self.value = ColumnLinear(width, inner, gather_output=False, **shared)
        self.output = RowLinear(inner, width, input_is_parallel=True, skip_bias_add=False, **shared)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """`[Q, N, width]`, `[P, N, width]`, `[P, N, width]` -> `[Q, N, width]`."""
        parts = self.query(query)[0], self.key(key)[0], self.value(value)[0]
        heads = [part.unflatten(-1, (-1, self.head_dim)) for part in parts]
        attended = ops.attention(*heads, causal=False, scale=self.head_dim**-0.5)
        return self.output(attended.flatten(2))[0]
