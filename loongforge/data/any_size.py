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
from loongforge.data.video import is_video, split_frames
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    from loongforge.components.projector.base import ProjectorConfig
    from loongforge.components.vision.base import AnySizeVisionConfig


_BICUBIC = Image.Resampling.BICUBIC


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
        limits += [vision.temporal_patch_size, vision.min_video_pixels, vision.max_video_pixels]
        return [*limits, self.projector.type, typical.tokens]

    def size(self, content: bytes) -> tuple[int, ...]:
        """Width and height of an image; of a video also its frames, and how many it has in 1000 seconds.

        Raises:
            SampleError: it is neither, or too large.
        """
        if not is_video(content):
            return super().size(content)
        frames, fps = split_frames(content)
        return *super().size(frames[0]), len(frames), round(1000 * fps)

    def shape(self, width: int, height: int, frames: int = 0, millifps: int = 0) -> ImageShape:
        """What an image or video of this size becomes.

        Raises:
            SampleError: it is far longer than wide.
        """
        return self._known(width, height, frames, millifps)

    def _shape(self, width: int, height: int, frames: int, millifps: int) -> ImageShape:
        try:
            seen = self.vision.shape_of(width, height, frames, millifps / 1000)
            return self.projector.shape(seen)
        except ValueError as error:
            raise SampleError(str(error), problem="image_too_long") from error

    def shapes(self, size: tuple[int, ...], tile: ImageShape) -> tuple[ImageShape, ...]:
        """The image or video as a whole."""
        return (self.shape(*size),)

    def tiles(self, content: bytes) -> list[np.ndarray]:
        """The image as a whole; a video as uint8 `[frames, height, width, 3]`, all frames as large as the first."""
        if not is_video(content):
            return [self.pixels(content)]
        frames, _ = split_frames(content)
        size = self._video_size(super().size(frames[0]))
        return [np.stack([np.asarray(self._decoded(frame).resize(size, _BICUBIC)) for frame in frames])]

    def _video_size(self, size: tuple[int, ...]) -> tuple[int, int]:
        try:
            return self.vision.resized(size[0], size[1], video=True)
        except ValueError as error:
            raise SampleError(str(error), problem="image_too_long") from error

    def _decoded(self, content: bytes) -> Image.Image:
        with self._open(content) as image:
            return to_rgb(ImageOps.exif_transpose(image))

    def pixels(self, content: bytes) -> np.ndarray:
        """uint8 `[height, width, 3]`, resized.

        Raises:
            SampleError: it cannot be decoded, is too large, or far longer than wide.
        """
        upright = self._decoded(content)
        size = self._scaled_size(*upright.size)
        return np.asarray(upright.resize(size, _BICUBIC) if upright.size != size else upright)

    def normalise(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[patches, 3 * temporal_patch_size * patch_size^2]` of all images, one after another."""
        parts = [self._patches(image) for image in pixels]
        return np.concatenate(parts) if parts else np.zeros((0, *self.vision.pixel_row), np.float32)

    def _patches(self, image: np.ndarray) -> np.ndarray:
        """Groups of patches row by row; in a patch channel by channel, then frame by frame. The last frame is repeated
        where some are missing."""
        patch, merge, depth = self.vision.patch_size, self.vision.merge_size, self.vision.temporal_patch_size
        frames = image if image.ndim == 4 else image[None]
        number, height, width, _ = frames.shape
        steps, down, across = -(-number // depth), height // patch // merge, width // patch // merge
        cut = frames.reshape(number, down, merge, patch, across, merge, patch, 3)
        cut = cut.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(number, -1, 3, patch, patch)
        result = np.empty((steps, cut.shape[1], 3, depth, patch, patch), np.float32)
        for place in range(steps * depth):
            frame = cut[min(place, number - 1)]
            for channel in range(3):
                result[place // depth, :, channel, place % depth] = self._table[channel][frame[:, channel]]
        return result.reshape(steps * cut.shape[1], -1)

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        try:
            return self.vision.resized(width, height)
        except ValueError as error:
            raise SampleError(str(error), problem="image_too_long") from error
