from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

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


def _for_transformers(content: bytes) -> Image.Image:
    """Transparent parts white, which transformers does itself in versions newer than those for Python 3.10."""
    from transformers.image_transforms import convert_to_rgb

    image = Image.open(io.BytesIO(content))
    if np.asarray(convert_to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0)))).max() == 255:
        return image
    pixels = np.asarray(image.convert("RGBA"), np.float64)
    alpha = pixels[..., 3:] / 255
    return Image.fromarray(np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


def _float(processor: ImageProcessor, content: bytes) -> np.ndarray:
    return processor.normalise([processor.pixels(content)])[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_crop_equals_transformers_clip(size: tuple[int, int], mode: str) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    content = _encoded(_random(size, mode))
    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    )(_for_transformers(content))["pixel_values"][0]
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
    if content[:4] != b"\x89PNG" or len(content) != 70:  # that one is broken behind its header
        with pytest.raises(SampleError, match=message):
            ImageProcessor(336, MEAN, STD).size(content)


def test_stored_pixels_come_back_exactly() -> None:
    image = _random((32, 32), "L")
    pixels = ImageProcessor(32, MEAN, STD).pixels(_encoded(image))
    assert (pixels == np.asarray(image)[..., None]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 8])
def test_size_is_that_of_the_upright_image(kind: str, orientation: int | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation or 1
    options = {"exif": exif} if orientation and kind not in ("GIF", "BMP", "PPM") else {}
    content = _encoded(_random((40, 24)), kind, **options)
    with Image.open(io.BytesIO(content)) as image:
        assert ImageProcessor(32, MEAN, STD).size(content) == ImageOps.exif_transpose(image).size


def test_size_where_a_png_is_turned_by_its_other_chunks() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    content = _encoded(_random((40, 24)), pnginfo=text)
    assert ImageProcessor(32, MEAN, STD).size(content) == (24, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    early = _encoded(_random((40, 24)), exif=exif)
    start = early.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(early[start : start + 4], "big")
    iend = early.index(b"IEND") - 4
    late = early[:start] + early[end:iend] + early[start:end] + early[iend:]
    with Image.open(io.BytesIO(late)) as image:
        assert ImageOps.exif_transpose(image).size == (24, 40)
    assert ImageProcessor(32, MEAN, STD).size(late) == (24, 40)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF"])
def test_what_size_refuses_pixels_refuses(kind: str) -> None:
    exif, rng = Image.Exif(), np.random.default_rng(1)
    exif[0x0112] = 6
    whole = np.frombuffer(_encoded(_random((40, 24)), kind, exif=exif), np.uint8)
    processor, refused = ImageProcessor(32, MEAN, STD), 0
    for _ in range(300):
        broken = whole.copy()
        broken[rng.integers(0, min(len(whole), 200), 3)] = rng.integers(0, 256, 3)
        reason = _refusal(processor.size, broken.tobytes())
        if reason is not None:
            refused += 1
            assert _refusal(processor.pixels, broken.tobytes()) == reason
    assert refused


def _refusal(read: Callable[[bytes], object], content: bytes) -> str | None:
    try:
        read(content)
    except SampleError as error:
        return str(error)
    return None


def test_formats_that_run_programs_are_not_read() -> None:
    content = _encoded(_random((8, 8)), "EPS")
    for read in (ImageProcessor(32, MEAN, STD).size, ImageProcessor(32, MEAN, STD).pixels):
        with pytest.raises(SampleError, match="its format is not known"):
            read(content)  # type: ignore[operator]
