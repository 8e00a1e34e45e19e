"""LLaVA-NeXT's tiles: pixels and numbers of tokens as transformers has them, from sizes alone."""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from loongforge.components.projector.mlp.llava_next import LlavaNextProjectorConfig
from loongforge.data.any_resolution import AnyResolutionImageProcessor
from loongforge.data.preview import preview
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample
from tests.support.tiny import tiny_vision

POINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
SIZES = [(64, 64), (100, 40), (40, 100), (33, 31), (7, 200), (500, 499), (95, 32)]


def _png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _images(patch_size: int = 16) -> AnyResolutionImageProcessor:
    vision = tiny_vision(patch_size=patch_size, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])
    return AnyResolutionImageProcessor(vision, LlavaNextProjectorConfig(type="llava_next", grid_pinpoints=POINTS))


def _theirs() -> LlavaNextImageProcessorPil:
    edge = {"height": 32, "width": 32}
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size=edge,
        image_grid_pinpoints=POINTS,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.3, 0.4],
    )


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    theirs = _theirs()(Image.open(io.BytesIO(_png(*size))), return_tensors="np")["pixel_values"][0]
    ours = _images()
    found = ours.normalise(ours.tiles(_png(*size)))
    assert found.shape == theirs.shape
    assert np.abs(found - theirs).max() < 1e-6
    assert ours.shapes(size, ours.vision.shape)[0].pixels == len(found)


@given(width=st.integers(4, 900), height=st.integers(4, 900), patch=st.sampled_from([2, 4, 8, 16]))
@settings(max_examples=200, deadline=None)
def test_numbers_of_tokens_are_those_of_transformers(width: int, height: int, patch: int) -> None:
    processor: Any = SimpleNamespace(image_processor=_theirs(), patch_size=patch, num_additional_image_tokens=0)
    processor._get_unpadded_features = LlavaNextProcessor._get_unpadded_features.__get__(processor)
    expected = LlavaNextProcessor._get_number_of_features(processor, height, width, 32, 32)
    images = _images(patch)
    (shape,) = images.shapes((width, height), images.vision.shape)
    assert shape.tokens == expected


def test_a_sample(processor: SampleProcessor) -> None:
    tiled = SampleProcessor(processor.tokenizer, max_length=256, image_processor=_images())
    messages = [{"role": "user", "content": "<image><image> What?"}, {"role": "assistant", "content": "7"}]
    raw = RawSample("s", messages, [lambda: _png(64, 64), lambda: _png(100, 40)])
    sample = tiled(raw)
    assert sample.units == (1, 1)
    assert (sample.ids == tiled.image_token_id).sum() == sum(shape.tokens for shape in sample.shapes)
    assert tiled.normalise(sample.pixels).shape == (sum(shape.pixels for shape in sample.shapes), 3, 32, 32)
    shown = preview(sample, tiled, raw)
    assert shown.units == tuple(shape.pixels for shape in sample.shapes)
    assert len(shown.pixels) == sum(shown.units)
    again = pickle.loads(pickle.dumps(tiled.image_processor))
    assert again.shapes((100, 40), again.vision.shape) == sample.images[1]
