"""Linear and two-layer MLP projectors on megatron-core layers."""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from loongforge.components.context import BuildContext
from loongforge.components.projector.mlp.config import LinearConfig, MLP2xGELUConfig
from loongforge.components.transformer.layers import transformer_config
from loongforge.components.transformer.linear import ColumnLinear, RowLinear, WholeLinear
from loongforge.kernels import ops


def _layer_config(context: BuildContext, width: int) -> TransformerConfig:
    # no attention here: a head per rank satisfies the checks of megatron-core
    return transformer_config(context, num_layers=1, hidden_size=width, num_attention_heads=context.tp, kv_channels=1)


class LinearProjector(MegatronModule):
    """One linear map, whole on every rank."""

    def __init__(self, config: LinearConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        super().__init__(_layer_config(context, output_size))
        self.tp_group = context.groups.tp
        self.linear = WholeLinear(input_size, output_size, bias=config.bias, dtype=context.dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[P, N, input_size]` -> `[P, N, output_size]`."""
        return self.linear(features)


class MLPProjector(MegatronModule):
    """Linear, GELU, linear; the inner width is divided over tensor-parallel ranks."""

    def __init__(self, config: MLP2xGELUConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        layer = _layer_config(context, output_size)
        super().__init__(layer)
        self.tp_group = context.groups.tp
        inner = config.inner_size(output_size)
        shared = dict(config=layer, init_method=torch.nn.init.zeros_, bias=config.bias, tp_group=self.tp_group)
        self.linear_1 = ColumnLinear(input_size, inner, gather_output=False, **shared)
        self.linear_2 = RowLinear(inner, output_size, input_is_parallel=True, skip_bias_add=False, **shared)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[P, N, input_size]` -> `[P, N, output_size]`."""
        hidden, _ = self.linear_1(features)
        return self.linear_2(ops.gelu(hidden))[0]
