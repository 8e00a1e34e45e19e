"""From an encoded image to the pixels that a vision encoder takes.

The same numbers as transformers' PIL image processors (`CLIPImageProcessorPil`, `SiglipImageProcessorPil`),
whose import alone takes seconds; a test compares them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from loongforge.data.sample import SampleError

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own limit for a warning)."""


class ImageProcessor:
    """Decodes, resizes (bicubic), scales to [0, 1] and normalises an image."""

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize: Literal["crop", "stretch"] = "crop",
    ):
        """Args:

        image_size: height and width of the result in pixels.
        mean: subtracted from pixels in [0, 1], per channel.
        std: divides what is left, per channel.
        resize: `crop` scales the shorter edge and cuts out the centre (CLIP); `stretch` scales both edges (SigLIP).
        """
        self.image_size = image_size
        self.resize = resize
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        means, stds = np.array(mean, np.float32), np.array(std, np.float32)
        self._table = (scaled - means[:, None]) / stds[:, None]  # [3, 256]: the result for each value of a pixel

    def pixels(self, content: bytes) -> np.ndarray:
        """uint8 `[image_size, image_size, 3]` from PNG, JPEG, ... bytes.

        Raises:
            SampleError: it cannot be decoded, or is too large.
        """
        return np.asarray(_resized(_decode(content), self.image_size, self.resize))

    def normalise(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[N, 3, image_size, image_size]` from N results of `pixels`; N may be 0."""
        result = np.empty((len(pixels), 3, self.image_size, self.image_size), np.float32)
        if len(pixels):
            stacked = np.stack(pixels)
            for channel in range(3):
                result[:, channel] = self._table[channel][stacked[..., channel]]
        return result


def _decode(content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            _check_pixels(*image.size)
            return _rgb(ImageOps.exif_transpose(image))
    except SampleError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they meet in broken files
        bomb = isinstance(error, Image.DecompressionBombError)  # refused before `_check_pixels` can
        raise SampleError(
            f"an image cannot be decoded ({len(content)} bytes): {error}",
            problem="image_too_large" if bomb else "undecodable_image",
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Transparent parts become white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise SampleError(
            f"an image of {width} x {height} pixels is larger than the limit of {MAX_PIXELS} pixels",
            problem="image_too_large",
        )


def _resized(image: Image.Image, size: int, resize: str) -> Image.Image:
    if resize == "stretch":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    width, height = image.size
    short = min(width, height)
    # the longer edge is rounded down, as in transformers
    width, height = (size if edge == short else int(size * edge / short) for edge in (width, height))
    _check_pixels(width, height)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size)) if width != height else image
