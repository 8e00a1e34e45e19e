"""Any resolution: an image becomes tiles, the same ones as in transformers, and each has its tokens."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from loongforge.data.images import ImageProcessor
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
SIZES = [(32, 32), (300, 100), (100, 300), (64, 64), (65, 64), (333, 500), (40, 160), (1000, 90), (20, 20)]


def _image(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    _image(size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [2, 5, 12])
def test_tiles_equal_transformers(size: tuple[int, int], most: int) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    theirs = GotOcr2ImageProcessorPil(
        size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=most, image_mean=MEAN, image_std=STD
    )(_image(size))
    images = ImageProcessor(32, MEAN, STD, max_tiles=most)
    ours = images.normalise(images.tiles(_png(size)))
    assert len(ours) == images.units(*size) == int(theirs["num_patches"][0])
    np.testing.assert_allclose(ours, np.stack(theirs["pixel_values"]), rtol=0, atol=1e-6)


def test_no_thumbnail() -> None:
    images = ImageProcessor(32, MEAN, STD, max_tiles=4, thumbnail=False)
    assert images.units(64, 32) == len(images.tiles(_png((64, 32)))) == 2


@pytest.fixture
def tiled(processor: SampleProcessor) -> SampleProcessor:
    return SampleProcessor(
        processor.tokenizer,
        max_length=256,
        num_image_tokens=4,
        image_processor=ImageProcessor(32, MEAN, STD, max_tiles=4),
    )


def _sample(*sizes: tuple[int, int]) -> RawSample:
    messages = [
        {"role": "user", "content": "<image>" * len(sizes) + " What is the sum?"},
        {"role": "assistant", "content": "7"},
    ]
    return RawSample("s", messages, [lambda size=size: _png(size) for size in sizes])


def test_every_tile_has_its_tokens(tiled: SampleProcessor) -> None:
    sample = tiled(_sample((64, 32), (32, 32), (32, 128)))
    assert sample.units == (3, 1, 5)
    assert (sample.ids == tiled.image_token_id).sum() == 9 * 4
    assert len(sample.pixels) == 9
    meta = tiled.measure(_sample((64, 32), (32, 32), (32, 128)))
    assert meta.text_tokens == len(sample.ids) - 9 * 4
    assert tuple(tiled.images(meta.image_sizes)) == sample.images


def test_only_wanted_tiles_are_kept(tiled: SampleProcessor) -> None:
    whole, some = tiled(_sample((64, 32), (32, 32))), tiled(_sample((64, 32), (32, 32)), only=(1, 3))
    assert np.array_equal(whole.ids, some.ids)
    assert [pixels.tobytes() for pixels in some.pixels] == [whole.pixels[i].tobytes() for i in (1, 3)]


def test_images_without_a_wanted_tile_are_not_decoded(tiled: SampleProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiled.image_processor is not None
    decoded: list[int] = []
    real = tiled.image_processor.tiles
    monkeypatch.setattr(tiled.image_processor, "tiles", lambda content: decoded.append(1) or real(content))
    tiled(_sample((64, 32), (32, 32)), only=(3,))
    assert len(decoded) == 1


def test_text_around_an_image(tiled: SampleProcessor) -> None:
    """Once around all of its tiles; never learned; kept where text is cut."""
    framed = SampleProcessor(
        tiled.tokenizer,
        max_length=256,
        num_image_tokens=4,
        image_ends=("is it", "?"),
        image_processor=tiled.image_processor,
    )
    begin, end = framed.image_ends
    assert begin
    assert end
    raw = _sample((64, 32), (32, 32))
    sample, bare = framed(raw), tiled(raw)
    assert len(sample.ids) == len(bare.ids) + 2 * len(begin + end)
    text = framed.decode(sample.ids.tolist()).replace("<image>" * 12, "A").replace("<image>" * 4, "B")
    assert "is itA?is itB?" in text.replace(" ?", "?")
    assert sample.learned.sum() == bare.learned.sum()
    assert framed.measure(raw).text_tokens == (sample.ids != framed.image_token_id).sum()
    framed.max_length, framed.too_long = len(sample.ids) - 2, "truncate_text"
    cut = framed(raw)
    assert cut.num_cut == 2
    images = [framed.image_token_id, *begin, *end]
    assert np.isin(cut.ids, images).sum() == np.isin(sample.ids, images).sum()
