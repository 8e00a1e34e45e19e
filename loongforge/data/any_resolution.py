"""Images cut into the tiles of the best of some sizes, padded, after the whole image: LLaVA-NeXT.

The same numbers as transformers' `LlavaNextImageProcessorPil`; a test compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from loongforge.data.images import ImageProcessor, to_rgb
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    from loongforge.components.projector.mlp.llava_next import LlavaNextProjectorConfig
    from loongforge.components.vision.base import VisionConfig


class AnyResolutionImageProcessor(ImageProcessor):
    """Decodes an image, resizes it into the best of the projector's sizes, and cuts that into tiles.

    Args:
        vision: the encoder's config.
        projector: the projector's.
    """

    any_size = True

    def __init__(self, vision: VisionConfig, projector: LlavaNextProjectorConfig):
        super().__init__(vision.image_size, vision.image_mean, vision.image_std, "stretch")
        self.vision, self.projector = vision, projector
        self._known = lru_cache(maxsize=4096)(self._shape)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.vision, self.projector)

    def description(self) -> list[object]:
        """What decides how many tokens an image has, for index files."""
        points = [list(size) for size in self.projector.grid_pinpoints]
        return [self.image_size, self.vision.num_image_tokens, points]

    def shapes(self, size: tuple[int, ...], tile: ImageShape) -> tuple[ImageShape, ...]:
        """All tiles of an image together: one rank encodes them."""
        return (self._known(size[0], size[1]),)

    def _shape(self, width: int, height: int) -> ImageShape:
        return self.projector.shape_of(self.vision.shape, self.image_size, width, height)

    def tiles(self, content: bytes) -> list[np.ndarray]:
        """uint8 `[tiles, image_size, image_size, 3]`: the whole image, then its tiles row by row.

        Raises:
            SampleError: it cannot be decoded, or is too large.
        """
        with self._open(content) as image:
            upright = to_rgb(ImageOps.exif_transpose(image))
        size = self.image_size
        whole = np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC))
        padded = self._padded(upright)
        rows, columns = padded.shape[0] // size, padded.shape[1] // size
        cut = padded.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)
        return [np.concatenate([whole[None], cut])]

    def _padded(self, image: Image.Image) -> np.ndarray:
        """uint8 of one of the projector's sizes: the image in its middle, black around it."""
        height, width = self.projector.pinpoint(*image.size)
        across, down = width / image.width, height / image.height
        if across < down:
            inner = (width, min(math.ceil(image.height * across), height))
        else:
            inner = (min(math.ceil(image.width * down), width), height)
        canvas = np.zeros((height, width, 3), np.uint8)
        top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
        resized = image.resize(inner, Image.Resampling.BICUBIC)
        canvas[top : top + inner[1], left : left + inner[0]] = np.asarray(resized)
        return canvas

    def normalise(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[tiles, 3, image_size, image_size]` of all images, one after another."""
        return super().normalise([tile for image in pixels for tile in image])
