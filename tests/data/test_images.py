from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from loongforge.data.images import ImageProcessor
from loongforge.data.sample import SampleError
from tests.data.conftest import png

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
SIZES = [(32, 32), (64, 48), (48, 64), (31, 77), (20, 20), (333, 500), (33, 32)]


def _random(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _float(processor: ImageProcessor, content: bytes) -> np.ndarray:
    return processor.normalise([processor.pixels(content)])[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_crop_equals_transformers_clip(size: tuple[int, int], mode: str) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    content = _encoded(_random(size, mode))
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    )(Image.open(io.BytesIO(content)))["pixel_values"][0]
    ours = _float(ImageProcessor(32, MEAN, STD), content)
    assert ours.dtype == np.float32
    assert ours.shape == (3, 32, 32)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_stretch_equals_transformers_siglip(size: tuple[int, int]) -> None:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    image = _random(size)
    theirs = SiglipImageProcessorPil(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD)(image)
    ours = _float(ImageProcessor(32, MEAN, STD, "stretch"), _encoded(image))
    np.testing.assert_allclose(ours, theirs["pixel_values"][0], rtol=0, atol=1e-6)


def test_rotation_of_a_camera_is_applied() -> None:
    image = _random((32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to look at it
    processor = ImageProcessor(32, MEAN, STD)
    turned = processor.pixels(_encoded(image, exif=exif))
    assert (turned == np.asarray(image.transpose(Image.Transpose.ROTATE_270))).all()


def test_no_images_is_an_empty_array() -> None:
    assert ImageProcessor(32, MEAN, STD).normalise([]).shape == (0, 3, 32, 32)


def _header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"not an image at all", "cannot be decoded"),
        (png(size=(64, 64))[:70], "cannot be decoded"),
        (_header_only(12000, 8000), "12000 x 8000 pixels is larger than the limit"),
        (_header_only(60000, 60000), r"cannot be decoded.*3600000000 pixels"),
        (_encoded(Image.new("L", (1, 60000))), "larger than the limit"),
    ],
)
def test_bad_images(content: bytes, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        ImageProcessor(336, MEAN, STD).pixels(content)


def test_stored_pixels_come_back_exactly() -> None:
    image = _random((32, 32), "L")
    pixels = ImageProcessor(32, MEAN, STD).pixels(_encoded(image))
    assert (pixels == np.asarray(image)[..., None]).all()
