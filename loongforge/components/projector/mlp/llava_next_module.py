"""LLaVA-NeXT's projector on megatron-core layers."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from loongforge.components.context import BuildContext
from loongforge.components.projector.mlp.llava_next import LlavaNextProjectorConfig
from loongforge.components.projector.mlp.module import MLPProjector
from loongforge.parallel.images import ImageShape, Shapes


class LlavaNextProjector(MLPProjector):
    """Projects all tiles of an image, then puts them in one order of rows."""

    any_size = True

    def __init__(
        self, config: LlavaNextProjectorConfig, context: BuildContext, *, input_size: int, output_size: int
    ) -> None:
        super().__init__(config, context, input_size=input_size, output_size=output_size)
        self.newline = torch.nn.Parameter(torch.empty(output_size, dtype=context.dtype))

    def forward(self, features: torch.Tensor, shapes: Shapes | None = None) -> torch.Tensor:
        """Projects.

        Args:
            features: `[features, input_size]`, tile by tile; without shapes as `MLPProjector` takes them.
            shapes: Of the images.

        Returns:
            `[tokens, output_size]`, image by image: the whole image, then line by line of its grid.
        """
        rows = super().forward(features if shapes is None else features[:, None])
        if shapes is None:
            return rows
        order, before = [], 0
        for shape in shapes:
            places = _order(shape)
            order.append(np.where(places < 0, len(features), before + places))
            before += shape.features
        rows = torch.cat([rows[:, 0], self.newline.to(rows.dtype)[None]])
        return rows[torch.from_numpy(np.concatenate(order)).to(rows.device)]


@lru_cache(maxsize=4096)
def _order(shape: ImageShape) -> np.ndarray:
    """int64 `[tokens]`: which feature of the image stands at each place; -1: the newline."""
    assert shape.kept is not None
    _, down, across = shape.grid
    per_tile = shape.features // shape.pixels
    edge = round(per_tile**0.5)
    tiles = np.arange(per_tile, shape.features).reshape(down, across, edge, edge)
    lines = tiles.transpose(0, 2, 1, 3).reshape(down * edge, across * edge)
    top, left = (lines.shape[0] - shape.kept[0]) // 2, (lines.shape[1] - shape.kept[1]) // 2
    inside = lines[top : top + shape.kept[0], left : left + shape.kept[1]]
    ended = np.concatenate([inside, np.full((len(inside), 1), -1)], 1)
    return np.concatenate([np.arange(per_tile), ended.ravel()])
