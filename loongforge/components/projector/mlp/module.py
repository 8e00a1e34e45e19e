"""Linear and MLP projectors on megatron-core layers."""

from __future__ import annotations

from math import isqrt

import torch
from megatron.core.transformer.module import MegatronModule

from loongforge.components.context import BuildContext
from loongforge.components.projector.mlp.config import LinearConfig, MLP2xGELUConfig
from loongforge.components.projector.mlp.pixel_shuffle import PixelShuffleMLPConfig
from loongforge.components.transformer.layers import LayerNorm, linear_config
from loongforge.components.transformer.linear import ColumnLinear, RowLinear, WholeLinear
from loongforge.kernels import ops
from loongforge.parallel.images import Shapes


class LinearProjector(MegatronModule):
    """One linear map, whole on every rank."""

    def __init__(self, config: LinearConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        super().__init__(linear_config(context, output_size))
        self.tp_group = context.groups.tp
        self.linear = WholeLinear(input_size, output_size, bias=config.bias, dtype=context.dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[P, N, input_size]` -> `[P, N, output_size]`."""
        return self.linear(features)


class MLPProjector(MegatronModule):
    """Linear, GELU, linear; the inner width is divided over tensor-parallel ranks."""

    def __init__(self, config: MLP2xGELUConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        layer = linear_config(context, output_size)
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


class PixelShuffleMLPProjector(MLPProjector):
    """Squares of neighbouring features side by side, and a norm, before the MLP."""

    any_size = True

    def __init__(
        self, config: PixelShuffleMLPConfig, context: BuildContext, *, input_size: int, output_size: int
    ) -> None:
        width = config.stacked(input_size)
        super().__init__(config, context, input_size=width, output_size=output_size)
        self.factor = config.factor
        self.norm = LayerNorm(width, eps=config.norm_eps, dtype=context.dtype)

    def forward(self, features: torch.Tensor, shapes: Shapes | None = None) -> torch.Tensor:
        """`[P, N, input_size]` -> `[P / factor^2, N, output_size]`; with shapes: `[features, input_size]` -> rows."""
        if shapes is None:
            edge = isqrt(len(features))
            return super().forward(self.norm(shuffled(features, self.factor, edge, edge)))
        parts = features.split([shape.features for shape in shapes])
        rows = [self._rows(part, *shape.grid) for part, shape in zip(parts, shapes, strict=True)]
        return super().forward(self.norm(torch.cat(rows)))

    def _rows(self, features: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
        """One image's or video's features `[frames * height * width, C]`, shuffled, frame by frame."""
        each = features.unflatten(0, (frames, height * width)).transpose(0, 1)
        return shuffled(each, self.factor, height, width).transpose(0, 1).flatten(0, 1)


def shuffled(features: torch.Tensor, factor: int, height: int, width: int) -> torch.Tensor:
    """Features of a grid `[height * width, N, C]` -> `[P', N, factor^2 C]`: a square's rows one after another; rows and
    columns that fill no square are left out."""
    down, across = height // factor, width // factor
    grid = features.unflatten(0, (height, width))[: down * factor, : across * factor]
    squares = grid.unflatten(1, (across, factor)).unflatten(0, (down, factor)).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(down * across, features.shape[1], -1)
