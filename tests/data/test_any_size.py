"""Images that keep their size: pixels as in transformers, shapes from sizes alone, packed and balanced batches."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from loongforge.data.any_size import AnySizeImageProcessor
from loongforge.data.arrange import Rules
from loongforge.data.batch import Batch
from loongforge.data.loader import TrainLoader
from loongforge.data.metadata import MetadataTable
from loongforge.data.part import Part
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample, SampleError
from loongforge.data.sources import open_sources
from loongforge.data.video import frame_names, join_frames
from loongforge.parallel.layout import Layout
from tests.data.conftest import config, write_jsonl
from tests.support.qwen import qwen_config

SIZES = [(28, 28), (100, 60), (60, 100), (333, 17), (17, 333), (5, 7), (640, 480), (84, 84)]


def _png(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _images(**limits: Any) -> AnySizeImageProcessor:
    model = qwen_config(vision=limits).model
    return AnySizeImageProcessor(model.vision, model.projector)  # type: ignore[arg-type]


@pytest.fixture
def any_size(processor: SampleProcessor) -> SampleProcessor:
    limits = dict(min_pixels=28 * 28, max_pixels=28 * 28 * 24)
    return SampleProcessor(processor.tokenizer, max_length=128, image_processor=_images(**limits))


@pytest.mark.parametrize("limits", [{}, dict(min_pixels=28 * 28, max_pixels=112 * 112), dict(min_pixels=200 * 200)])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_transformers(size: tuple[int, int], limits: dict[str, int]) -> None:
    images = _images(**limits)
    theirs = Qwen2VLImageProcessorPil(
        size={"shortest_edge": images.vision.min_pixels, "longest_edge": images.vision.max_pixels}
    )(Image.open(io.BytesIO(_png(*size))), return_tensors="np")
    ours = images.normalise(images.tiles(_png(*size)))
    assert ours.shape == theirs["pixel_values"].shape
    assert np.abs(ours - theirs["pixel_values"]).max() < 1e-6
    shape = images.shape(*size)
    assert list(shape.grid) == theirs["image_grid_thw"][0].tolist()
    assert (shape.pixels, shape.tokens) == (len(ours), len(ours) // 4)


def test_an_image_much_longer_than_wide_is_a_bad_sample(any_size: SampleProcessor) -> None:
    with pytest.raises(SampleError, match="more than 200 times"):
        any_size(_sample((4100, 20)))


def _sample(*sizes: tuple[int, int]) -> RawSample:
    messages = [
        {"role": "user", "content": "<image>" * len(sizes) + " What is the sum?"},
        {"role": "assistant", "content": "7"},
    ]
    return RawSample("s", messages, [lambda size=size: _png(*size) for size in sizes])


def test_every_image_has_its_own_tokens(any_size: SampleProcessor) -> None:
    sample = any_size(_sample((56, 28), (28, 84), (56, 56)))
    assert [shape.tokens for shape in sample.shapes] == [2, 3, 4]
    assert (sample.ids == any_size.image_token_id).sum() == 9
    meta = any_size.measure(_sample((56, 28), (28, 84), (56, 56)))
    assert meta.text_tokens == len(sample.ids) - 9
    assert any_size.images(meta.image_sizes) == list(sample.images)
    some = any_size(_sample((56, 28), (28, 84), (56, 56)), only=(1,))
    assert np.array_equal(some.pixels[0], sample.pixels[1])
    assert some.shapes == sample.shapes


def test_it_travels_to_worker_processes(any_size: SampleProcessor) -> None:
    images = pickle.loads(pickle.dumps(any_size.image_processor))
    assert images.shape(100, 60) == any_size.image_processor.shape(100, 60)  # type: ignore[union-attr]
    assert images.description() == any_size.image_processor.description()  # type: ignore[union-attr]


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """24 samples with none to three images of many sizes."""
    draw, records = np.random.default_rng(0), []
    for number in range(24):
        names = []
        for image in range(int(draw.integers(0, 4))):
            names.append(f"{number}_{image}.png")
            (tmp_path / names[-1]).write_bytes(_png(*(int(edge) for edge in draw.integers(20, 150, 2))))
        content = "<image>" * len(names) + " word" * int(draw.integers(1, 12))
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": str(number)}]
        records.append({"id": f"s{number}", "images": names, "messages": messages})
    return str(write_jsonl(tmp_path, records))


def _steps(processor: SampleProcessor, train: str, *, dp: int, rank: int, mode: str | None) -> list[list[Batch]]:
    """Two steps of a rank; `mode` None: padded."""
    layout = Layout.from_model(qwen_config().model, dp)
    part = Part(layout, rank, lambda number: number)
    rules = None if mode is None else Rules(dp, dp, token_budget=160, mode=mode)
    options = dict(seed=3, global_batch_size=12, micro_batch_size=2, dp_size=dp, replicas=list(layout.replicas(rank)))
    loader = TrainLoader(config(train), processor, part=part, packing=rules, **options)  # type: ignore[arg-type]
    found = [loader.load(step).micro_batches for step in range(2)]
    loader.close()
    return [batch for batches in found for batch in batches.values()]


def _held(batch: Batch) -> list[bytes]:
    """Pixels of each image that the rank has read."""
    assert batch.shapes is not None and batch.image_plan is not None
    sizes = [batch.shapes[i].pixels for i in batch.image_plan.held]
    return [part.numpy().tobytes() for part in batch.images.split(sizes)] if sizes else []


@pytest.mark.parametrize("mode", [None, "none", "llm", "full"])
def test_all_ranks_together_read_every_image_once(any_size: SampleProcessor, mixed: str, mode: str | None) -> None:
    alone = [batch for step in _steps(any_size, mixed, dp=1, rank=0, mode=mode) for batch in step]
    everything = sorted(pixels for batch in alone for pixels in _held(batch))
    ranks = [_steps(any_size, mixed, dp=3, rank=rank, mode=mode) for rank in range(3)]
    read = [pixels for steps in ranks for step in steps for batch in step for pixels in _held(batch)]
    assert sorted(read) == everything
    for steps in ranks:
        for batch in (batch for step in steps for batch in step):
            assert batch.shapes is not None
            assert sum(shape.tokens for shape in batch.shapes) == int((batch.tokens == any_size.image_token_id).sum())


def test_patches_are_shared_evenly(any_size: SampleProcessor, mixed: str) -> None:
    """Four encoder replicas serve one LLM replica: what counts is patches, not images."""
    model = qwen_config().model
    model.llm.parallel.tp = 4
    layout, images = Layout.from_model(model, 4), [any_size.images([size])[0] for size in SIZES]
    shapes = [shape for tiles in images for shape in tiles]
    shares = [Part(layout, rank, lambda number: 1).shares([shapes], 0, any_size=True)[0] for rank in range(4)]
    assert np.concatenate(shares).tolist() == list(range(len(SIZES)))
    loads = [sum(shapes[i].patches for i in share) for share in shares]
    assert max(loads) <= sum(loads) / 4 + max(shape.patches for shape in shapes)


def test_metadata_from_an_index_gives_the_same_shapes(any_size: SampleProcessor, mixed: str) -> None:
    ((source, _),) = open_sources(mixed, "data.train", None, None)
    table = MetadataTable([source], any_size)
    for index in range(len(source)):
        meta, sample = table.get(0, index), any_size(source.load(index))
        assert any_size.images(meta.image_sizes) == list(sample.images)
        assert meta.text_tokens + sum(shape.tokens for shape in sample.shapes) == len(sample.ids)


def test_an_index_made_for_other_limits_is_not_used(any_size: SampleProcessor) -> None:
    from loongforge.data.meta_index import fingerprint

    other = SampleProcessor(any_size.tokenizer, max_length=128, image_processor=_images(max_pixels=28 * 28 * 8))
    assert fingerprint(other) != fingerprint(any_size)


def test_batches_without_images_have_no_pixels(any_size: SampleProcessor) -> None:
    pixels = any_size.normalise([])
    assert pixels.shape == (0, 1176)
    assert torch.from_numpy(pixels).dtype == torch.float32


def test_frames_become_steps_in_time() -> None:
    """Two frames make a patch, the last one fills up; each frame is cut as an image of its size is."""
    images = _images(min_video_pixels=28 * 28, max_video_pixels=56 * 84, min_pixels=28 * 28, max_pixels=56 * 84)
    frames = [_png(90, 60), _png(90, 61), _png(90, 62)]
    content = join_frames(frames, 4.0)
    size = images.size(content)
    assert size == (90, 60, 3, 4000)
    (shape,) = images.shapes(size, images.vision.shape)
    pixels = images.normalise(images.tiles(content))
    steps, rows, columns = shape.grid
    assert (steps, len(pixels)) == (2, shape.pixels)
    by_frame = pixels.reshape(steps, rows * columns, 3, 2, -1)
    alone = [
        images.normalise([images.tiles(content)[0][i]]).reshape(rows * columns, 3, 2, -1)[:, :, 0] for i in range(3)
    ]
    for place, expected in enumerate([*alone, alone[-1]]):
        assert np.array_equal(by_frame[place // 2, :, :, place % 2], expected)


def test_a_video_in_a_sample(any_size: SampleProcessor, tmp_path: Path) -> None:
    """Frames named in a part; what the index knows is enough for its shape."""
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(_png(60, 60))
    any_size.image_processor.vision.min_video_pixels = 28 * 28  # type: ignore[union-attr]
    video = {"type": "video", "video": ["a.png", "b.png", "c.png"], "fps": 1}
    content = [{"type": "image", "image": "a.png"}, video, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "7"}]
    ((source, _),) = open_sources(str(write_jsonl(tmp_path, [{"messages": messages}])), "data.train", None, None)
    raw = source.load(0)
    sample, table = any_size(raw), MetadataTable([source], any_size)
    assert [shape.grid[0] for shape in sample.shapes] == [1, 2]
    for _ in range(2):  # measured, then remembered
        assert any_size.images(table.get(0, 0).image_sizes) == list(sample.images)
    assert (sample.ids == any_size.image_token_id).sum() == sum(shape.tokens for shape in sample.shapes)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "video", "video": "film.mp4"}, "video files are not decoded"),
        ({"type": "video", "video": ["a.png"], "fps": 0}, "positive number"),
    ],
)
def test_what_is_no_video(part: dict[str, Any], words: str) -> None:
    with pytest.raises(SampleError, match=words):
        frame_names(part)


def _loaded(folder: Path, record: dict[str, Any]) -> RawSample:
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.png").write_bytes(_png(60, 60))
    ((source, _),) = open_sources(str(write_jsonl(folder, [record])), "data.train", None, None)
    return source.load(0)


def test_videos_beside_messages_are_those_in_parts(any_size: SampleProcessor, tmp_path: Path) -> None:
    """`<video>` in texts, with images between them: the same tokens and pixels as a part of type video gives."""
    any_size.image_processor.vision.min_video_pixels = 28 * 28  # type: ignore[union-attr]
    video = {"video": ["a.png", "b.png", "c.png"], "fps": 1}
    answer = {"role": "assistant", "content": "7"}
    parts = [{"type": "video", **video}, {"type": "image", "image": "b.png"}, {"type": "text", "text": "What?"}]
    parts.append({"type": "video", "video": ["c.png"]})
    inside = {"messages": [{"role": "user", "content": parts}, answer]}
    text = {"role": "user", "content": "<video><image>What?<video>"}
    beside = {"messages": [text, answer], "images": ["b.png"], "videos": [video, ["c.png"]]}
    one, two = (any_size(_loaded(tmp_path / str(i), record)) for i, record in enumerate((inside, beside)))
    assert np.array_equal(one.ids, two.ids)
    assert [shape.grid[0] for shape in two.shapes] == [2, 1, 1]
    assert all(np.array_equal(a, b) for a, b in zip(one.pixels, two.pixels, strict=True))


@pytest.mark.parametrize(
    ("text", "videos", "words"),
    [
        ("<video>", [["a.png"], ["b.png"]], "1 of its videos have no <video>"),
        ("<video><video>", [["a.png"]], "more <video> than videos"),
        ("<video>", "film", "'videos' must be a list"),
        ("<video>", ["film.mp4"], "video files are not decoded"),
    ],
)
def test_videos_and_places_that_do_not_fit(text: str, videos: Any, words: str, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "7"}]
    with pytest.raises(SampleError, match=words):
        _loaded(tmp_path / "data", {"messages": messages, "videos": videos})


def test_other_encoders_refuse_videos(processor: SampleProcessor) -> None:
    sample = _sample((32, 32))
    video = join_frames([_png(32, 32)] * 2, 1.0)
    with pytest.raises(SampleError, match="does not take"):
        processor(RawSample("s", sample.messages, [lambda: video]))


def test_temporal_positions_follow_the_clock() -> None:
    vision = qwen_config("qwen2_5", vision=dict(tokens_per_second=4)).model.vision
    assert vision.shape_of(56, 56, 8, fps=2.0).interval == 4.0  # type: ignore[union-attr]
    assert vision.shape_of(56, 56).interval == 1.0  # type: ignore[union-attr]
    other = qwen_config("qwen2").model.vision
    assert other.shape_of(56, 56, 8, fps=2.0).interval == 1.0  # type: ignore[union-attr]
