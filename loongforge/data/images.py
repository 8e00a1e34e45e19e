"""From an encoded image to the pixels that a vision encoder takes.

The same numbers as transformers' PIL image processors (`CLIPImageProcessorPil`, `SiglipImageProcessorPil`),
whose import alone takes seconds; a test compares them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from loongforge.data.sample import SampleError
from loongforge.data.video import is_video
from loongforge.parallel.images import ImageShape

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own limit for a warning)."""

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
# Pillow also reads formats that run other programs (EPS) or are no pictures; data from elsewhere gets none of these.

_TURNED_IN_PNG = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where a PNG can say which side is up


class ImageProcessor:
    """Decodes, resizes (bicubic), scales to [0, 1] and normalises an image."""

    any_size = False
    """Whether an image keeps its size, so that its number of tokens is its own; see `AnySizeImageProcessor`."""

    def __init__(
        self,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resize: Literal["crop", "stretch"] = "crop",
        *,
        max_tiles: int = 1,
        thumbnail: bool = True,
    ):
        """Args:

        image_size: height and width of the result in pixels.
        mean: subtracted from pixels in [0, 1], per channel.
        std: divides what is left, per channel.
        resize: `crop` scales the shorter edge and cuts out the centre (CLIP); `stretch` scales both edges (SigLIP).
        max_tiles: above 1, an image is stretched to a grid of at most so many tiles, each an image to the encoder.
        thumbnail: with several tiles, the whole image is one more.
        """
        self.max_tiles, self.thumbnail = max_tiles, thumbnail
        self.image_size = image_size
        self.resize = resize
        scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
        means, stds = np.array(mean, np.float32), np.array(std, np.float32)
        self._table = (scaled - means[:, None]) / stds[:, None]  # [3, 256]: the result for each value of a pixel

    def description(self) -> list[object]:
        """What decides how many tokens an image has, for index files."""
        return [self.image_size, self.resize, self.max_tiles, self.thumbnail]

    def size(self, content: bytes) -> tuple[int, ...]:
        """Width and height of an encoded image, turned upright, from its header.

        Raises:
            SampleError: it is no image, or too large. What is wrong behind the header, only `pixels` finds.
        """
        with self._open(content) as image:
            return _upright_size(image, content)

    def units(self, width: int, height: int) -> int:
        """Images that the encoder sees of an image of this size."""
        columns, rows = tile_grid(width, height, self.image_size, self.max_tiles)
        return columns * rows + int(self.thumbnail and columns * rows > 1)

    def shapes(self, size: tuple[int, ...], tile: ImageShape) -> tuple[ImageShape, ...]:
        """What the encoder sees of an image of a size from `size`, where it sees tiles of one size."""
        return (tile,) * self.units(size[0], size[1])

    def tiles(self, content: bytes) -> list[np.ndarray]:
        """What the encoder sees of an image: uint8 `[image_size, image_size, 3]` each, row by row, the thumbnail last.

        Raises:
            SampleError: as `pixels`.
        """
        if self.max_tiles == 1:
            return [self.pixels(content)]
        with self._open(content) as image:
            upright = to_rgb(ImageOps.exif_transpose(image))
        size = self.image_size
        columns, rows = tile_grid(*upright.size, size, self.max_tiles)
        whole = np.asarray(upright.resize((columns * size, rows * size), Image.Resampling.BICUBIC))
        tiles = [tile for row in np.split(whole, rows) for tile in np.split(row, columns, axis=1)]
        if self.thumbnail and len(tiles) > 1:
            tiles.append(np.asarray(upright.resize((size, size), Image.Resampling.BICUBIC)))
        return tiles

    def pixels(self, content: bytes) -> np.ndarray:
        """The image as a whole: uint8 `[image_size, image_size, 3]` from PNG, JPEG, ... bytes.

        Raises:
            SampleError: it cannot be decoded, or is too large.
        """
        with self._open(content) as image:
            upright = to_rgb(ImageOps.exif_transpose(image))
        return np.asarray(self._resized(upright))

    def normalise(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[N, 3, image_size, image_size]` from N results of `pixels`; N may be 0."""
        result = np.empty((len(pixels), 3, self.image_size, self.image_size), np.float32)
        if len(pixels):
            stacked = np.stack(pixels)
            for channel in range(3):
                result[:, channel] = self._table[channel][stacked[..., channel]]
        return result

    @contextmanager
    def _open(self, content: bytes) -> Iterator[Image.Image]:
        """An image whose header is read and whose size is allowed, also once it is resized."""
        if is_video(content):
            raise SampleError("it has a video, which this encoder does not take", problem="undecodable_image")
        try:
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                _check_pixels(*image.size)
                _check_pixels(*self._scaled_size(*image.size))
                yield image
        except SampleError:
            raise
        except UnidentifiedImageError as error:  # its own words name an address in memory
            raise _undecodable(content, "its format is not known") from error
        except Image.DecompressionBombError as error:  # before `_check_pixels` could see it
            raise _undecodable(content, str(error), "image_too_large") from error
        except Exception as error:  # Pillow's decoders raise whatever they meet in broken files
            raise _undecodable(content, str(error)) from error

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """The size that an image is scaled to, before its centre is cut out."""
        size, short = self.image_size, min(width, height)
        if self.resize == "stretch":
            return size, size
        # the longer edge is rounded down, as in transformers
        scaled_width, scaled_height = (size if edge == short else int(size * edge / short) for edge in (width, height))
        return scaled_width, scaled_height

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = self._scaled_size(*image.size)
        if image.size != (width, height) or self.resize == "stretch":
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top, size = (width - self.image_size) // 2, (height - self.image_size) // 2, self.image_size
        return image.crop((left, top, left + size, top + size)) if width != height else image


def tile_grid(width: int, height: int, size: int, most: int) -> tuple[int, int]:
    """Columns and rows of at most `most` tiles whose aspect ratio is nearest to an image's.

    Of grids that are equally near, more tiles win as long as the image has over half of their pixels (InternVL's rule,
    as in transformers' `GotOcr2ImageProcessor`).
    """
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most // c + 1)]
    best, least = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width / height - columns / rows)
        if apart < least or (apart == least and width * height > 0.5 * size**2 * columns * rows):
            best, least = (columns, rows), apart
    return best


def to_rgb(image: Image.Image) -> Image.Image:
    """Three channels; transparent parts become white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _upright_size(image: Image.Image, content: bytes) -> tuple[int, int]:
    """The size after `exif_transpose`, without decoding where the header tells."""
    if image.format == "PNG" and not any(mark in content for mark in _TURNED_IN_PNG):
        return image.size  # Pillow would decode all of it to look for what is not there
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    if turned and image.format == "TIFF":  # which Pillow turns itself, at a moment that depends on its version
        image.load()
        return image.size
    return image.size[::-1] if turned else image.size


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _undecodable(content: bytes, why: str, problem: str = "undecodable_image") -> SampleError:
    return SampleError(f"an image cannot be decoded ({len(content)} bytes): {why}", problem=problem)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise SampleError(
            f"an image of {width} x {height} pixels is larger than the limit of {MAX_PIXELS} pixels",
            problem="image_too_large",
        )
