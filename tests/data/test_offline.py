"""Packed rows written once: the same samples, token by token, whatever happens while they are written."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loongforge.config.errors import UserError
from loongforge.data.batch import IGNORE
from loongforge.data.check.run import check, open_sets
from loongforge.data.loader import TrainLoader
from loongforge.data.metadata import MetadataTable
from loongforge.data.offline import run as packing_run
from loongforge.data.offline.budget import Budget, Measured, rows_of
from loongforge.data.offline.job import Job, make_job
from loongforge.data.offline.report import Packed
from loongforge.data.offline.run import pack_data
from loongforge.data.preview import preview
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample
from loongforge.data.sources import open_sources
from tests.data.conftest import chat, config, png, same, write_jsonl
from tests.data.test_packed import _loader

BUDGET = 128


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """60 samples: chats with none to three images, raw texts; two of the images are broken."""
    records: list[dict[str, Any] | str] = []
    for number in range(60):
        names = [f"{number}_{i}.png" for i in range(number % 4)]
        for i, name in enumerate(names):
            (tmp_path / name).write_bytes(png(number * 4 + i)[: 50 if number in (7, 22) else None])
        question = "<image>" * len(names) + " Which digit is shown?" * (1 + number % 3)
        said = {"text": f"Digit {number}."} if number % 8 == 4 else {"messages": chat(question, str(number))}
        records.append({"id": f"s{number}", "images": names, **said})
    return write_jsonl(tmp_path, records)


def _job(data: Path, processor: SampleProcessor, *, tokens: int = BUDGET, window: int = 25, **changes: Any) -> Job:
    options = config(str(data), bad_sample="skip", **changes)
    return make_job(options, processor, Budget(tokens), seed=3, samples=None, window=window, shard_rows=3)


def _pack(job: Job, out: Path, workers: int = 1) -> Packed:
    return pack_data(job, out, workers=workers, watch=lambda _: nullcontext(lambda _: None))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".jsonl")}


def test_every_sample_is_in_one_row_as_it_is_alone(processor: SampleProcessor, mixed: Path, tmp_path: Path) -> None:
    packed = _pack(_job(mixed, processor), tmp_path / "packed")
    assert (packed.samples, packed.left_out) == (58, 2)
    with pytest.raises(UserError, match="packed row already"):
        _pack(_job(tmp_path / "packed", processor), tmp_path / "again")
    ((source, _),) = open_sources(str(tmp_path / "packed"), "data.train")
    ((plain, _),) = open_sources(str(mixed), "data.train")
    alone = {}
    for index in (i for i in range(60) if i not in (7, 22)):
        one = processor(plain.load(index))
        alone[one.id] = one
    assert len(source) == packed.rows
    lengths = []
    for index in range(len(source)):
        row = processor(source.load(index))
        lengths.append(len(row.ids))
        pixels = list(row.pixels)
        for name, start, end in zip(row.names, (0, *row.ends), row.ends, strict=False):
            expected = alone.pop(name)
            assert same(row.ids[start:end], expected.ids)
            assert same(row.learned[start + 1 : end], expected.learned[1:])
            assert not row.learned[start]
            assert all(same(pixels.pop(0), one) for one in expected.pixels)
        assert not pixels
    assert not alone
    assert max(lengths) <= BUDGET
    assert sum(lengths) == packed.tokens
    assert packed.fill(BUDGET) == pytest.approx(sum(lengths) / BUDGET / packed.rows)


def test_training_reads_rows(processor: SampleProcessor, mixed: Path, tmp_path: Path) -> None:
    """A row is a micro-batch; no label is that of the next document; every rank count sees the same rows."""
    _pack(_job(mixed, processor), tmp_path / "packed")
    seen = []
    for dp in (1, 2, 3):
        loaders = [_loader(processor, str(tmp_path / "packed"), dp=dp, rank=rank, mode="none") for rank in range(dp)]
        batches = [batch for rank, one in enumerate(loaders) for batch in one.load(0).micro_batches[rank]]
        for batch in batches:
            assert batch.cu_seqlens is not None
            borders = batch.cu_seqlens.tolist()
            assert len(batch.ids) in (len(borders) - 1, len(borders) - 2)  # what is left over is one more
            assert all(batch.labels[0, end - 1] == IGNORE for end in borders[1:])
        seen.append(sorted(tuple(batch.ids) for batch in batches if batch.ids))
        for one in loaders:
            one.close()
    assert seen[0] == seen[1] == seen[2]


def test_rows_need_packing(processor: SampleProcessor, mixed: Path, tmp_path: Path) -> None:
    _pack(_job(mixed, processor), tmp_path / "packed")
    loader = TrainLoader(config(str(tmp_path / "packed")), processor, seed=1, global_batch_size=2, micro_batch_size=2)
    with pytest.raises(UserError, match=r"packed row.*packing\.enabled=true"):
        loader.load(0)


def test_rows_are_indexed(processor: SampleProcessor, mixed: Path, tmp_path: Path) -> None:
    """What was measured is not measured again, and is what would be."""
    _pack(_job(mixed, processor), tmp_path / "packed")
    ((source, _),) = open_sources(str(tmp_path / "packed"), "data.train")
    table = MetadataTable([source], processor, decode=True)
    for index in range(len(source)):
        assert table.known(0, index) == processor.measure(source.load(index), decode=True)


def test_bad_samples_follow_the_recipe(processor: SampleProcessor, mixed: Path, tmp_path: Path) -> None:
    _pack(_job(mixed, processor), tmp_path / "packed")
    lines = [json.loads(line) for line in (tmp_path / "packed/quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == ["s22", "s7"]
    job = _job(mixed, processor)
    job.data.bad_sample = "fail"
    with pytest.raises(UserError, match=r"bad sample: line (8|23) of .*a\.jsonl \(id 's(7|22)'\)"):
        _pack(job, tmp_path / "fail")
    job = _job(mixed, processor, max_bad=1)
    with pytest.raises(UserError, match=r"more than data\.max_bad=1"):
        _pack(job, tmp_path / "many")
    assert not (tmp_path / "fail").exists() and not (tmp_path / "many").exists()
    short = _job(mixed, processor, tokens=30)  # some samples are longer
    assert _pack(short, tmp_path / "short").left_out > 10


def test_an_interrupted_run_goes_on(
    processor: SampleProcessor, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that are done are not read again, and the result is the same, byte for byte."""
    _pack(_job(mixed, processor), tmp_path / "whole")
    written = []
    whole = packing_run.Window.write

    def stopping(window: Any, *arguments: Any) -> Any:
        written.append(window._number)
        if written == [0, 1]:
            (tmp_path / ".packed.partial" / "rows-00001-00099.tar").write_bytes(b"half")
            raise KeyboardInterrupt
        return whole(window, *arguments)

    monkeypatch.setattr(packing_run.Window, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        _pack(_job(mixed, processor), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    _pack(_job(mixed, processor), tmp_path / "packed")
    assert written == [0, 1, 1, 2]
    assert _contents(tmp_path / "packed") == _contents(tmp_path / "whole")
    assert not (tmp_path / ".packed.partial").exists()
    _pack(_job(mixed, processor), tmp_path / "packed")
    assert written == [0, 1, 1, 2]  # nothing to do
    with pytest.raises(UserError, match="another budget"):
        _pack(_job(mixed, processor, tokens=100), tmp_path / "packed")


def test_processes_change_nothing(processor: SampleProcessor, mixed: Path, tmp_path: Path) -> None:
    one, two = (_pack(_job(mixed, processor), tmp_path / str(workers), workers) for workers in (1, 2))
    assert one == two
    assert _contents(tmp_path / "1") == _contents(tmp_path / "2")


def test_sources_are_gone_through_as_in_a_run(processor: SampleProcessor, tmp_path: Path) -> None:
    """Every sample comes at least once; one of a source that is repeated, as often."""
    for name, number in (("a", 6), ("b", 9)):
        write_jsonl(
            tmp_path, [{"id": f"{name}{i}", "messages": chat("Digit?", "7")} for i in range(number)], f"{name}.jsonl"
        )
    from loongforge.config.schema import SourceConfig

    train = [
        SourceConfig(path=str(tmp_path / "a.jsonl"), repeat=2),
        SourceConfig(path=str(tmp_path / "b.jsonl"), repeat=1),
    ]
    job = make_job(config(train), processor, Budget(64), seed=1, samples=None, window=100, shard_rows=9)
    assert _pack(job, tmp_path / "packed").samples == 21
    ((source, _),) = open_sources(str(tmp_path / "packed"), "data.train")
    names = [document.id for index in range(len(source)) for document in source.load(index).documents]
    assert sorted(names) == sorted([f"a{i}" for i in range(6)] * 2 + [f"b{i}" for i in range(9)])


def test_rows_are_shown_and_checked_sample_by_sample(processor: SampleProcessor, tmp_path: Path) -> None:
    """A preview says where each begins, and who speaks; a check names the sample in the row."""
    messages = [chat("Digit?", "7"), chat("Digit?", "7"), chat("Digit?", " ")]
    data = write_jsonl(tmp_path, [{"id": f"s{i}", "messages": one} for i, one in enumerate(messages)])
    _pack(_job(data, processor), tmp_path / "packed")
    ((source, _),) = open_sources(str(tmp_path / "packed"), "data.train")
    shown = preview(processor(source.load(0)), processor, source.load(0))
    assert [role for _, role in sorted(shown.roles.items())][::2] == [f"sample {i}, user" for i in _ids(source.load(0))]
    checked = check(open_sets({"train": str(tmp_path / "packed")}), processor, workers=1, examples=3)
    assert {kind: problem.count for kind, problem in checked.problems.items()} == {"empty_answer": 1}
    assert "sample 's2' in it" in checked.problems["empty_answer"].examples[0][1].reason


def _ids(row: RawSample) -> list[str]:
    return [document.id for document in row.documents]


def test_a_row_with_a_gap_is_bad(processor: SampleProcessor, mixed: Path, tmp_path: Path) -> None:
    from loongforge.data.sample import SampleError
    from tests.data.conftest import add_members

    record = json.dumps({"id": "a", "messages": chat("Digit?")}).encode()
    add_members(tmp_path / "gap.tar", [("k.0.json", record), ("k.2.json", record)])
    ((source, _),) = open_sources(str(tmp_path / "gap.tar"), "data.train")
    with pytest.raises(SampleError, match="numbered"):
        source.load(0)


sizes = st.lists(st.builds(Measured, st.integers(1, 100), st.integers(0, 40)), max_size=60)


@given(samples=sizes, patches=st.sampled_from([None, 40, 55]))
@settings(max_examples=200, deadline=None)
def test_rows_are_within_their_budget(samples: list[Measured], patches: int | None) -> None:
    rows = rows_of(samples, Budget(100, patches))
    assert sorted(number for row in rows for number in row) == list(range(len(samples)))
    assert all(sum(samples[number].tokens for number in row) <= 100 for row in rows)
    assert patches is None or all(sum(samples[number].patches for number in row) <= patches for row in rows)
    firsts = [row[0] for row in rows]
    assert firsts == sorted(firsts) and all(row == sorted(row) for row in rows)


@pytest.mark.parametrize("mean", [4.5, 5.5, 6.5])
def test_rows_are_as_full_as_packs(mean: float) -> None:
    """Within half a percent of best-fit-decreasing, and with samples of several lengths in a row."""
    from loongforge.data.balance import pack

    lengths = np.random.default_rng(0).lognormal(mean, 0.8, 8000).astype(int).clip(8, 4096)
    rows = rows_of([Measured(int(length), 0) for length in lengths], Budget(4096))
    assert len(rows) <= 1.005 * (pack(lengths, 4096).max() + 1)
    if mean == 4.5:
        bins = pack(lengths, 4096)
        spread = np.mean([lengths[row].std() for row in rows])
        assert spread > 1.5 * np.mean([lengths[bins == number].std() for number in range(bins.max() + 1)])


_MEMORY = """
import resource, sys
from contextlib import nullcontext
from pathlib import Path
from loongforge.data.offline.budget import Budget
from loongforge.data.offline.job import make_job
from loongforge.data.offline.run import pack_data
from loongforge.data.processing import SampleProcessor
from loongforge.data.tokenizer import load_tokenizer
from tests.data.conftest import config

train, tokenizer, out, samples = sys.argv[1:]
processor = SampleProcessor(load_tokenizer(tokenizer), max_length=128)
job = make_job(
    config(train), processor, Budget(512), seed=1, samples=int(samples), window=1000, shard_rows=100
)
pack_data(job, Path(out), workers=1, watch=lambda _: nullcontext(lambda _: None))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_data(tmp_path: Path, digits: Path) -> None:
    """Ten times as many samples of 10 kB leave a few bytes each."""
    filler = "x" * 10_000
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(10_000):
            file.write(json.dumps({"id": str(number), "messages": chat("Digit?", str(number)), "note": filler}) + "\n")

    def peak(samples: int) -> float:
        command = [sys.executable, "-c", _MEMORY, str(tmp_path / "a.jsonl"), str(digits / "tokenizer")]
        command += [str(tmp_path / str(samples)), str(samples)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(10_000) - peak(1000) < 24
