"""LLaVA-NeXT's projector: which tiles an image is cut into, and how many LLM tokens they become."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from loongforge.components.hf_settings import HFSettings
from loongforge.components.projector.mlp.config import MLP2xGELUConfig
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    import torch

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap

_EXAMPLES = ((1.0, 1.0), (2.1, 1.0), (0.7, 2.0), (1.6, 1.9))
"""Widths and heights of images in tiles."""


@dataclass(kw_only=True)
class LlavaNextProjectorConfig(MLP2xGELUConfig):
    """LLaVA-1.5's projector on the tiles of an image (transformers `LlavaNextModel.pack_image_features`)."""

    any_size: ClassVar[bool] = True
    cuts_images: ClassVar[bool] = True
    hf_model_types: ClassVar[tuple[str, ...]] = ("llava_next",)

    grid_pinpoints: list[list[int]] = field(
        default_factory=lambda: [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    )
    """Heights and widths that an image may be resized to, in pixels; whole numbers of tiles."""

    def pinpoint(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the allowed size that keeps most of an image's pixels, of these the smallest."""
        best, most, least = (0, 0), 0, math.inf
        for to_height, to_width in self.grid_pinpoints:
            scale = min(to_width / width, to_height / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            wasted = to_width * to_height - kept
            if kept > most or (kept == most and wasted < least):
                best, most, least = (to_height, to_width), kept, wasted
        return best

    def shape_of(self, tile: ImageShape, tile_size: int, width: int, height: int) -> ImageShape:
        """What an image of this size becomes: the whole image as a tile, then the tiles of its grid.

        Args:
            tile: What the encoder makes of a tile.
            tile_size: Its edge in pixels.
            width: Of the image.
            height: Of the image.
        """
        to_height, to_width = self.pinpoint(width, height)
        down, across = to_height // tile_size, to_width // tile_size
        rows, columns = _unpadded(down * tile.grid[1], across * tile.grid[2], width, height)
        tiles = 1 + down * across
        tokens = tile.features + rows * (columns + 1)
        grid = (1, down, across)
        return ImageShape(tiles, tiles * tile.patches, tiles * tile.features, tokens, grid, kept=(rows, columns))

    def example_shapes(self, seen: Sequence[ImageShape], tile_size: int) -> list[ImageShape]:
        """Of images of several aspect ratios."""
        sizes = [(round(width * tile_size), round(height * tile_size)) for width, height in _EXAMPLES]
        return [self.shape_of(tile, tile_size, *size) for tile in seen for size in sizes]

    def num_tokens(self, num_features: int) -> int:
        """LLM tokens of a square image that fills a grid of 2 x 2 tiles, where the encoder gives so many features."""
        edge = math.isqrt(num_features)
        return num_features + 2 * edge * (2 * edge + 1)

    @property
    def typical_tiles(self) -> int:
        """Of such an image."""
        return 5

    def tile_problems(self, tile_size: int, num_features: int) -> list[str]:
        """Sizes that do not fit the encoder's."""
        wrong = [size for size in self.grid_pinpoints if len(size) != 2 or any(e % tile_size or e < 1 for e in size)]
        found = [f"grid_pinpoints: {wrong[0]} is no whole number of tiles of {tile_size} pixels"] if wrong else []
        if not self.grid_pinpoints:
            found.append("grid_pinpoints is empty")
        if math.isqrt(num_features) ** 2 != num_features:
            found.append(f"the encoder gives {num_features} features, which are no square")
        return found

    def fit_tiles(self, before: int, after: int) -> None:
        """Sizes in tiles stay, while a tile's edge changes."""
        self.grid_pinpoints = [[edge // before * after for edge in size] for size in self.grid_pinpoints]

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """With the newline."""
        return super().params_on(tp, input_size=input_size, output_size=output_size) + output_size

    def flops(self, num_features: int, *, input_size: int, output_size: int) -> float:
        """Forward FLOPs of one image whose tiles have so many features each."""
        weights = self.params_on(1, input_size=input_size, output_size=output_size)
        return 2.0 * weights * num_features * self.typical_tiles

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.projector.mlp.llava_next_module import LlavaNextProjector

        return LlavaNextProjector(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.projector.mlp.llava_next_hf import name_map

        return name_map()

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> LlavaNextProjectorConfig:
        """From `config.json` of a whole LLaVA-NeXT."""
        settings = HFSettings(hf)
        settings.require("projector_hidden_act", "gelu")
        settings.require("use_image_newline_parameter", True)
        points = [list(size) for size in settings.get("image_grid_pinpoints", cls(type="").grid_pinpoints)]
        bias = settings.get("multimodal_projector_bias", True)
        return cls(type="llava_next", bias=bias, grid_pinpoints=points)

    def to_hf(self) -> dict[str, Any]:
        """What `config.json` of a LLaVA-NeXT says of its projector."""
        points = [list(size) for size in self.grid_pinpoints]
        return {**super().to_hf(), "image_grid_pinpoints": points, "use_image_newline_parameter": True}


def _unpadded(rows: int, columns: int, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of features that an image of this aspect ratio covers in a grid, as transformers rounds."""
    if width / height > columns / rows:
        inside = int(round(height * (columns / width), 7))
        return rows - (rows - inside) // 2 * 2, columns
    inside = int(round(width * (rows / height), 7))
    return rows, columns - (columns - inside) // 2 * 2
