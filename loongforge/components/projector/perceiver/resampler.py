"""The resampler of several layers on megatron-core layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from loongforge.components.context import BuildContext
from loongforge.components.projector.perceiver.config import ResamplerConfig
from loongforge.components.transformer.cross_attention import CrossAttention
from loongforge.components.transformer.layers import LayerNorm, linear_config
from loongforge.components.transformer.linear import ColumnLinear, RowLinear, WholeLinear


class ResamplerLayer(MegatronModule):
    """Cross-attention to features and queries, then a ReLU MLP, both added to the queries."""

    def __init__(
        self,
        settings: ResamplerConfig,
        config: TransformerConfig,
        group: torch.distributed.ProcessGroup,
        width: int,
    ) -> None:
        super().__init__(config)
        self.tp_group = group
        norms = [LayerNorm(width, eps=settings.norm_eps, dtype=config.params_dtype) for _ in range(3)]
        self.feature_norm, self.query_norm, self.mlp_norm = norms
        heads = dict(heads=settings.num_heads, head_dim=settings.head_dim)
        self.attention = CrossAttention(config, group, width=width, bias=False, **heads)
        inner = settings.mlp_ratio * width
        shared = dict(config=config, init_method=torch.nn.init.zeros_, bias=False, tp_group=group)
        self.linear_1 = ColumnLinear(width, inner, gather_output=False, **shared)
        self.linear_2 = RowLinear(inner, width, input_is_parallel=True, skip_bias_add=False, **shared)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """`[Q, N, width]` and `[P, N, width]` -> `[Q, N, width]`."""
        normed = self.query_norm(queries)
        seen = torch.cat([self.feature_norm(features), normed])
        queries = queries + self.attention(normed, seen, seen)
        inner, _ = self.linear_1(self.mlp_norm(queries))
        return queries + self.linear_2(F.relu(inner))[0]


class Layers(MegatronModule):
    """Layers one after another, by number (a `ModuleList` would save their shards as whole tensors)."""

    def __init__(self, config: TransformerConfig, layers: list[ResamplerLayer]) -> None:
        super().__init__(config)
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """As a layer's."""
        for layer in self.children():
            queries = layer(queries, features)
        return queries


class Resampler(MegatronModule):
    """Learned queries, layers at the encoder's width, a map to the LLM's; heads and MLPs divided over ranks."""

    def __init__(self, config: ResamplerConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        super().__init__(linear_config(context, input_size))
        self.tp_group, dtype = context.groups.tp, context.dtype
        self.queries = torch.nn.Parameter(torch.empty(config.num_queries, input_size, dtype=dtype))
        layers = [ResamplerLayer(config, self.config, self.tp_group, input_size) for _ in range(config.depth)]
        self.layers = Layers(self.config, layers)
        self.norm = LayerNorm(input_size, eps=config.norm_eps, dtype=dtype)
        self.output = WholeLinear(input_size, output_size, dtype=dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[P, N, input_size]` -> `[num_queries, N, output_size]`."""
        queries = self.queries[:, None].expand(-1, features.shape[1], -1)
        return self.output(self.norm(self.layers(queries, features)))
