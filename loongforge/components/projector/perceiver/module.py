"""The one-layer perceiver on megatron-core layers."""

from __future__ import annotations

from math import isqrt

import torch
from megatron.core.transformer.module import MegatronModule

from loongforge.components.context import BuildContext
from loongforge.components.projector.perceiver.config import PerceiverConfig
from loongforge.components.projector.perceiver.positions import grid_positions, resized
from loongforge.components.transformer.cross_attention import CrossAttention
from loongforge.components.transformer.layers import LayerNorm, linear_config
from loongforge.components.transformer.linear import WholeLinear
from loongforge.parallel.images import Shapes


class Perceiver(MegatronModule):
    """Learned queries attend once to an image's features; heads are divided over tensor-parallel ranks."""

    any_size = True

    def __init__(self, config: PerceiverConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        super().__init__(linear_config(context, output_size))
        self.tp_group = context.groups.tp
        width, dtype, heads = output_size, context.dtype, config.heads(output_size)
        self.queries = torch.nn.Parameter(torch.empty(config.num_queries, width, dtype=dtype))
        self.features = WholeLinear(input_size, width, bias=False, dtype=dtype)
        norms = [LayerNorm(width, eps=config.norm_eps, dtype=dtype) for _ in range(3)]
        self.query_norm, self.feature_norm, self.post_norm = norms
        self.attention = CrossAttention(
            self.config, self.tp_group, width=width, heads=heads, head_dim=width // heads, bias=True
        )
        self.output = WholeLinear(width, width, dtype=dtype)
        positions = grid_positions(isqrt(config.num_queries), width)
        self.register_buffer("positions", positions, persistent=False)

    def forward(self, features: torch.Tensor, shapes: Shapes | None = None) -> torch.Tensor:
        """`[P, N, input_size]` -> `[num_queries, N, output_size]`; with shapes: `[features, input_size]` -> rows."""
        if shapes is None:
            edge = isqrt(len(features))
            return self._resample(features, 1, edge, edge)
        parts = features[:, None].split([shape.features for shape in shapes])
        rows = [self._resample(part, *shape.grid)[:, 0] for part, shape in zip(parts, shapes, strict=True)]
        return torch.cat(rows)

    def _resample(self, features: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
        """Images of one shape `[frames * height * width, N, input_size]`; frames have the same positions."""
        values = self.feature_norm(self.features(features))
        keys = values + resized(self.positions, height, width).repeat(frames, 1)[:, None].to(values.dtype)
        queries = self.query_norm(self.queries) + self.positions.to(values.dtype)
        attended = self.attention(queries[:, None].expand(-1, values.shape[1], -1), keys, values)
        return self.output(self.post_norm(attended))
