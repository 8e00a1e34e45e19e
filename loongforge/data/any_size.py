"""Images that keep their size: patches for encoders that take any number of them.

The same numbers as transformers' `Qwen2VLImageProcessorPil`; a test compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from loongforge.data.images import ImageProcessor, to_rgb
from loongforge.data.sample import SampleError
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    from loongforge.components.projector.base import ProjectorConfig
    from loongforge.components.vision.base import AnySizeVisionConfig


class AnySizeImageProcessor(ImageProcessor):
    """Decodes an image, resizes it to a whole number of groups of patches near its own size, and cuts it into patches.

    Args:
        vision: the encoder's config.
        projector: the projector's.
    """

    any_size = True

    def __init__(self, vision: AnySizeVisionConfig, projector: ProjectorConfig):
        super().__init__(vision.image_size, vision.image_mean, vision.image_std, "stretch")
        self.vision, self.projector = vision, projector
        self._known = lru_cache(maxsize=4096)(self._shape)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.vision, self.projector)

    def description(self) -> list[object]:
        """What decides how many tokens an image has, for index files."""
        vision, typical = self.vision, self.shape(self.image_size, self.image_size)
        limits = [vision.patch_size, vision.merge_size, vision.min_pixels, vision.max_pixels]
        return [*limits, self.projector.type, typical.tokens]

    def shape(self, width: int, height: int) -> ImageShape:
        """What an image of this size becomes.

        Raises:
            SampleError: it is far longer than wide.
        """
        return self._known(width, height)

    def _shape(self, width: int, height: int) -> ImageShape:
        try:
            return self.projector.shape(self.vision.shape_of(width, height))
        except ValueError as error:
            raise SampleError(str(error), problem="image_too_long") from error

    def shapes(self, width: int, height: int, tile: ImageShape) -> tuple[ImageShape, ...]:
        """The image as a whole."""
        return (self.shape(width, height),)

    def tiles(self, content: bytes) -> list[np.ndarray]:
        """The image as a whole."""
        return [self.pixels(content)]

    def pixels(self, content: bytes) -> np.ndarray:
        """uint8 `[height, width, 3]`, resized.

        Raises:
            SampleError: it cannot be decoded, is too large, or far longer than wide.
        """
        with self._open(content) as image:
            upright = to_rgb(ImageOps.exif_transpose(image))
        size = self._scaled_size(*upright.size)
        return np.asarray(upright.resize(size, Image.Resampling.BICUBIC) if upright.size != size else upright)

    def normalise(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[patches, 3 * temporal_patch_size * patch_size^2]` of all images, one after another."""
        parts = [self._patches(image) for image in pixels]
        return np.concatenate(parts) if parts else np.zeros((0, *self.vision.pixel_row), np.float32)

    def _patches(self, image: np.ndarray) -> np.ndarray:
        """Groups of patches row by row; in a patch channel by channel, then frame by frame."""
        patch, merge, frames = self.vision.patch_size, self.vision.merge_size, self.vision.temporal_patch_size
        height, width, _ = image.shape
        cut = image.reshape(height // patch // merge, merge, patch, width // patch // merge, merge, patch, 3)
        cut = cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, patch, patch)
        result = np.empty((len(cut), 3, frames, patch, patch), np.float32)
        for channel in range(3):
            result[:, channel] = self._table[channel][cut[:, channel]][:, None]
        return result.reshape(len(cut), -1)

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        try:
            return self.vision.resized(width, height)
        except ValueError as error:
            raise SampleError(str(error), problem="image_too_long") from error
