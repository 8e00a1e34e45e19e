"""Packed steps: the same samples whatever the ranks, within the budget, each read where it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loongforge.data.arrange import Arrangement, Load, Rules, arrange
from loongforge.data.batch import IGNORE, StepData
from loongforge.data.loader import TrainLoader
from loongforge.data.part import Part
from loongforge.data.processed import Encoded
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample
from loongforge.parallel.images import ImageShape
from loongforge.parallel.layout import Layout
from tests.data.conftest import chat, config, png, write_jsonl
from tests.support.tiny import tiny_config

MODES = ["none", "llm", "full"]
BATCH = 12


def _loader(processor: SampleProcessor, train: Any, *, dp: int, rank: int, mode: str, **options: Any) -> TrainLoader:
    layout = Layout.from_model(tiny_config().model, dp)
    rules = Rules(
        replicas=dp,
        encoders=dp,
        token_budget=options.pop("budget", 128),
        mode=mode,
        objective="lock_step" if mode == "full" else "one_barrier",
    )
    sizes = {"seed": 3, "global_batch_size": BATCH, "micro_batch_size": 4}
    part = Part(layout, rank, lambda number: number)
    return TrainLoader(config(train, **options), processor, part=part, packing=rules, dp_size=dp, **sizes)


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """40 samples of none to three images and different lengths; some images are broken."""
    records = []
    for number in range(40):
        count = number % 4
        names = [f"{number}_{i}.png" for i in range(count)]
        for i, name in enumerate(names):
            (tmp_path / name).write_bytes(png(number * 5 + i)[: 50 if number in (7, 22) else None])
        question = "<image>" * count + " Which digit is shown?" * (1 + number % 3)
        records.append({"id": f"s{number}", "images": names, "messages": chat(question, str(number))})
    return str(write_jsonl(tmp_path, records))


def _ids(data: StepData, replica: int) -> list[str]:
    return [name for batch in data.micro_batches[replica] for name in batch.ids]


@pytest.mark.parametrize("mode", MODES)
def test_samples_do_not_depend_on_the_number_of_ranks(processor: SampleProcessor, mixed: str, mode: str) -> None:
    """Nor does what is left out, and who tells."""
    seen = []
    for dp in (4, 2, 1, 3):
        loaders = [_loader(processor, mixed, dp=dp, rank=rank, mode=mode, bad_sample="skip") for rank in range(dp)]
        steps = [[loader.load(step) for loader in loaders] for step in range(5)]
        ids = [sorted(name for rank, data in enumerate(ranks) for name in _ids(data, rank)) for ranks in steps]
        bad = [[one for rank, data in enumerate(ranks) for one in data.bad[rank]] for ranks in steps]
        assert all(len({data.fingerprint for data in ranks}) == 1 for ranks in steps)
        seen.append((ids, bad))
    assert all(one == seen[0] for one in seen)
    assert {one.id for step in seen[0][1] for one in step} == {"s7", "s22"}
    assert all(len(ids) == BATCH for ids in seen[0][0])


@pytest.mark.parametrize("mode", MODES)
def test_rows_hold_whole_documents(processor: SampleProcessor, mixed: str, mode: str) -> None:
    data = _loader(processor, mixed, dp=1, rank=0, mode=mode, bad_sample="skip").load(0)
    for batch in data.micro_batches[0]:
        assert batch.tokens.shape == batch.labels.shape
        assert batch.tokens.shape[0] == 1 and batch.tokens.shape[1] <= 128
        assert batch.cu_seqlens is not None
        borders = batch.cu_seqlens.tolist()
        assert borders[0] == 0 and borders[-1] == batch.tokens.shape[1]
        for name, start, end in zip(batch.ids, borders[:-1], borders[1:], strict=False):
            document, labels = batch.tokens[0, start:end], batch.labels[0, start:end]
            assert labels[-1] == IGNORE  # nothing is to be predicted across a border
            assert processor.decode(labels[labels != IGNORE].tolist()) == name.removeprefix("s") + "</s>"
            where = (labels != IGNORE).nonzero().flatten()
            assert (document[where + 1] == labels[where]).all()


def test_images_of_a_planned_step_are_each_read_once(processor: SampleProcessor, mixed: str) -> None:
    steps = [_loader(processor, mixed, dp=3, rank=rank, mode="full", bad_sample="skip").load(1) for rank in range(3)]
    read: list[bytes] = []
    for data in steps:
        assert sorted(data.micro_batches) == [0, 1, 2]  # any rank may encode for any other
        read += [image.numpy().tobytes() for part in data.micro_batches.values() for b in part for image in b.images]
    whole = _loader(processor, mixed, dp=1, rank=0, mode="none", bad_sample="skip").load(1)
    assert sorted(read) == sorted(image.numpy().tobytes() for b in whole.micro_batches[0] for image in b.images)


def _tiles(number: int) -> tuple[ImageShape, ...]:
    return (ImageShape(1, 1, 4, 4),) * number


tiled = st.integers(1, 3).map(_tiles)
any_size = st.integers(1, 3).map(lambda patches: (ImageShape(patches, patches, patches, 2 * patches),))
images = st.lists(st.one_of(tiled, any_size), max_size=3).map(tuple)
loads = st.lists(st.builds(Load, st.integers(1, 60), images), min_size=1, max_size=30)


@given(
    samples=loads,
    mode=st.sampled_from(MODES),
    replicas=st.integers(1, 5),
    encoders=st.integers(1, 6),
    stages=st.booleans(),
    capped=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_arrangements_are_complete_and_within_the_budget(
    samples: list[Load], mode: str, replicas: int, encoders: int, stages: bool, capped: bool
) -> None:
    objective = "pipeline" if stages else "lock_step" if mode == "full" else "one_barrier"
    cap = 9 * max(1, -(-replicas // encoders)) if capped else None  # so that every sample alone is within it
    rules = Rules(replicas, encoders, token_budget=100, mode=mode, objective=objective, patch_cap=cap)
    found = arrange(samples, rules)
    assert cap is None or _most_patches(samples, found, rules) <= cap
    assert len(found.cells) == replicas
    assert len({len(row) for row in found.cells}) == 1
    flat = [sample for row in found.cells for cell in row for sample in cell]
    assert sorted(flat) == list(range(len(samples)))
    lengths = np.array([load.text_tokens + sum(s.tokens for tiles in load.images for s in tiles) for load in samples])
    assert all(lengths[cell].sum() <= 100 for row in found.cells for cell in row if cell)
    if len(samples) >= replicas * len(found.cells[0]):
        assert all(cell for row in found.cells for cell in row)
    if found.encoders is not None:
        assert [len(part) for part in found.encoders] == [len(load.shapes) for load in samples]
        assert all(((part >= 0) & (part < encoders)).all() for part in found.encoders)
    assert arrange(samples, rules).fingerprint == found.fingerprint


def _most_patches(samples: list[Load], found: Arrangement, rules: Rules) -> int:
    """Of an encoder replica in a micro-batch."""
    held = np.zeros((max(rules.encoders, rules.replicas), len(found.cells[0])), np.int64)
    for replica, row in enumerate(found.cells):
        for place, cell in enumerate(row):
            for sample in cell:
                own = replica * rules.encoders // rules.replicas if rules.encoders < rules.replicas else replica
                patches = [shape.patches for shape in samples[sample].shapes]
                planned = [own] * len(patches) if found.encoders is None else found.encoders[sample]
                np.add.at(held[:, place], planned, patches)
    return int(held.max())


def test_fingerprints_tell_arrangements_apart() -> None:
    samples = [Load(10, (_tiles(1),)), Load(12, ()), Load(30, (_tiles(2),)), Load(7, ())]
    found = {
        arrange(samples, Rules(2, 2, budget, mode=mode)).fingerprint
        for budget, mode in ((40, "none"), (80, "none"), (40, "full"))
    }
    assert len(found) == 3


def test_a_text_is_tokenised_once(processor: SampleProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To plan the step, and not again for the row; on every rank."""
    (tmp_path / "a.png").write_bytes(png(3))
    train = str(write_jsonl(tmp_path, [{"id": str(i), "images": ["a.png"], "messages": chat()} for i in range(40)]))
    seen: list[str] = []
    encode = SampleProcessor.encode

    def counting(self: SampleProcessor, sample: RawSample) -> Encoded:
        seen.append(sample.id)
        return encode(self, sample)

    monkeypatch.setattr(SampleProcessor, "encode", counting)
    for rank in range(2):
        seen.clear()
        loader = _loader(processor, train, dp=2, rank=rank, mode="llm")
        for step in range(3):
            loader.load(step)
        assert len(seen) == len(set(seen)) == 3 * BATCH


_MEMORY = """
import resource, sys
import numpy as np
import loongforge.data.fetch as fetch
from loongforge.data.arrange import Rules
from loongforge.data.loader import TrainLoader
from loongforge.data.part import Part
from loongforge.data.processed import Encoded
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample
from loongforge.data.tokenizer import load_tokenizer
from loongforge.parallel.layout import Layout
from tests.data.conftest import config
from tests.support.tiny import tiny_config

class Quick(SampleProcessor):
    def _encode(self, sample, units):
        return Encoded(np.full(200, 5, np.int32), np.ones(200, bool))

train, tokenizer, room, packed = sys.argv[1:]
fetch.CACHE_BYTES = int(room)
fetch._MEASURED_BYTES = int(room)
processor = Quick(load_tokenizer(tokenizer), max_length=256)
layout = Layout.from_model(tiny_config().model, 1)
options = dict(part=Part(layout, 0, lambda n: n), packing=Rules(1, 0, 1600, mode="none")) if packed == "1" else {}
loader = TrainLoader(
    config(train, prefetch=2), processor, seed=1, global_batch_size=500, micro_batch_size=50, **options
)
assert loader.num_samples == 100_000
peaks = []
for step in range(200):
    loader.load(step)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
loader.close()
print(peaks[19], peaks[-1])
"""


@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_data(tmp_path: Path, digits: Path, packed: bool) -> None:
    """Of 100 000 samples, the last 90 000 leave a few bytes each; without its limit, what is remembered would grow."""
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(100_000):
            file.write(json.dumps({"id": str(number), "messages": chat("Digit?", str(number))}) + "\n")

    def growth(room: int) -> float:
        files = [str(tmp_path / "a.jsonl"), str(digits / "tokenizer")]
        command = [sys.executable, "-c", _MEMORY, *files, str(room), str(int(packed))]
        early, late = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        return late - early

    assert growth(8 << 20) < 24
    if not packed:
        assert growth(1 << 40) > 100
