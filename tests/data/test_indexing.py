from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loongforge.cli.main import main
from loongforge.config.errors import UserError
from loongforge.data.fetch import SampleFetcher
from loongforge.data.indexing import Indexed, MetadataIndexer, index_positions
from loongforge.data.meta_index import meta_path
from loongforge.data.metadata import MetadataTable, SampleMeta
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources import Source, open_source
from loongforge.data.sources.tar_index import index_path
from tests.data.conftest import chat, png, shard_sample, write_jsonl, write_tar


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two shards with 15 samples; the sixth is bad, the seventh behind the header of its image."""
    torn = png(5, (640, 640))[:80]
    changes = {5: {"json": b"{nope"}, 6: {"0.png": torn}}
    samples = [shard_sample(i, **changes.get(i, {})) for i in range(15)]
    from loongforge.data.sources.shard_writer import write_shards

    write_shards(tmp_path, "a", samples, 10)
    return open_source(str(tmp_path / "a-*.tar"), "data.train")


@contextmanager
def _silent(total: int) -> Iterator[Callable[[int], None]]:
    seen: list[int] = []
    yield seen.append
    assert sum(seen) == total


def _index(source: Source, processor: SampleProcessor, **options: Any) -> Indexed:
    workers, anew = options.pop("workers", 1), options.pop("anew", False)
    options = {"decode": False, "index_dir": None, **options}
    (report,) = MetadataIndexer([source], processor, **options).run(workers, _silent, anew=anew)
    return report


def _metas(source: Source, processor: SampleProcessor, **options: Any) -> list[SampleMeta]:
    table = MetadataTable([source], processor, **options)
    return [table.get(0, i) for i in range(len(source))]


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("measured in spite of an index")

    monkeypatch.setattr(SampleFetcher, "measure", forbidden)


@pytest.mark.parametrize("decode", [False, True])
def test_the_table_reads_the_index(
    source: Source, processor: SampleProcessor, decode: bool, request: pytest.FixtureRequest
) -> None:
    expected = _metas(source, processor, decode=decode)
    report = _index(source, processor, decode=decode)
    assert (report.files, report.written, report.samples, report.bad) == (2, 2, 15, 1 + decode)
    assert report.images == 14 - decode
    assert report.text_tokens == sum(meta.text_tokens for meta in expected)
    assert report.label_tokens == sum(meta.label_tokens for meta in expected)
    assert "s0005 of" in report.first_bad and "not valid JSON" in report.first_bad
    request.getfixturevalue("no_measuring")
    assert _metas(source, processor, decode=decode) == expected
    assert _index(source, processor, decode=decode).written == 0


def test_an_index_with_decoded_images_serves_without(
    source: Source, processor: SampleProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    _index(source, processor)
    assert [meta.problem is None for meta in _metas(source, processor, decode=True)].count(False) == 2
    assert "made without decoding images" in caplog.text
    report = _index(source, processor, decode=True)
    assert report.written == 2
    assert "--decode" in report.notes[0]
    assert _index(source, processor).written == 0


def _change_data(source: Source, processor: SampleProcessor) -> SampleProcessor:
    stat = os.stat(source.parts[0].path)
    os.utime(source.parts[0].path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    return processor


def _change_tokenizer(source: Source, processor: SampleProcessor) -> SampleProcessor:
    other = copy.copy(processor)
    other.tokenizer = copy.deepcopy(processor.tokenizer)
    other.tokenizer.add_tokens(["whatever"])
    return other


def _change_template(source: Source, processor: SampleProcessor) -> SampleProcessor:
    other = copy.copy(processor)
    other.tokenizer = copy.deepcopy(processor.tokenizer)
    other.tokenizer.chat_template += " "
    return other


def _change_length(source: Source, processor: SampleProcessor) -> SampleProcessor:
    other = copy.copy(processor)
    other.max_length = 5
    return other


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_change_data, "data"),
        (_change_tokenizer, "tokenizer"),
        (_change_template, "chat template"),
        (_change_length, "longest sample"),
    ],
)
def test_an_index_that_does_not_fit_is_told_and_not_used(
    source: Source,
    processor: SampleProcessor,
    change: Callable[[Source, SampleProcessor], SampleProcessor],
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _index(source, processor)
    other = change(source, processor)
    caplog.set_level(logging.WARNING)
    metas = _metas(source, other)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert f"made with another {what};" in told[0] and "a-00000.tar" in told[0]
    if what == "longest sample":
        assert all(meta.problem is not None for meta in metas)
    report = _index(source, other)
    assert report.written == (1 if what == "data" else 2)
    assert all(f"made with another {what}" in note for note in report.notes)
    caplog.clear()
    assert _metas(source, other) == metas
    assert not caplog.records


def test_a_damaged_index_is_made_again(
    source: Source, processor: SampleProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    expected = _metas(source, processor)
    _index(source, processor)
    path = meta_path(source.parts[1].path, None)
    assert path is not None
    path.write_bytes(path.read_bytes()[:-50])
    assert _metas(source, processor) == expected
    assert "its index is damaged" in caplog.text
    assert _index(source, processor).written == 1


def test_index_in_a_folder_of_its_own(tmp_path: Path, processor: SampleProcessor) -> None:
    for name in ("x", "y"):
        write_tar(tmp_path / name, 3 if name == "x" else 5)
        index_path(tmp_path / name / "a-00000.tar").unlink()  # type: ignore[union-attr]
    folder = str(tmp_path / "index")
    for name, number in (("x", 3), ("y", 5)):
        index_positions(str(tmp_path / name), "data.train", index_dir=folder, workers=1)
        source = open_source(str(tmp_path / name), "data.train", index_dir=folder)
        assert _index(source, processor, index_dir=folder).samples == number
    assert len(list((tmp_path / "index").iterdir())) == 4
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a-00000.tar"]
    assert _index(open_source(str(tmp_path / "y"), "data.train"), processor, index_dir=folder).written == 0
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the index .*data\.index_dir"):
        _index(source, processor, index_dir=str(tmp_path / "file"))


def test_workers_write_the_same(tmp_path: Path, source: Source, processor: SampleProcessor) -> None:
    write_jsonl(tmp_path, [{"text": f"text {i}"} for i in range(300)], "t.jsonl")
    lines = open_source(str(tmp_path / "t.jsonl"), "data.train")
    written = []
    for workers in (1, 2):
        for reports in MetadataIndexer([source, lines], processor, decode=True, index_dir=None).run(
            workers, _silent, anew=True
        ):
            assert reports.written
        written.append([path.read_bytes() for path in sorted(tmp_path.glob("*.meta.npz"))])
    assert len(written[0]) == 3
    assert written[0] == written[1]


def test_positions_of_records_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path, [{"id": i, "text": "x" * i} for i in range(50)])
    file = str(tmp_path / "a.jsonl")
    assert index_positions(file, "path", index_dir=None, workers=1) == 1
    with monkeypatch.context() as patched:
        patched.setattr("loongforge.data.sources.spans._scan", None)
        source = open_source(file, "path")
    assert [source.load(i).id for i in range(50)] == [str(i) for i in range(50)]
    assert source.locate(7).key == "line 8"
    (tmp_path / "a.jsonl").write_text('{"text": "new"}\n')
    assert len(open_source(file, "path")) == 1
    assert len(open_source(str(tmp_path / "*"), "path")) == 1  # index files are no data


def test_an_index_takes_few_bytes(tmp_path: Path, processor: SampleProcessor) -> None:
    (tar,) = write_tar(tmp_path, 4000, per_shard=4000)
    source = open_source(str(tar), "data.train")
    _index(source, processor)
    size = sum(path.stat().st_size for path in tmp_path.iterdir() if path != tar)
    assert size < 4000 * 60  # of a million: 60 MB


def test_command(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"id": "a", "images": ["1.png"], "messages": chat()}
    (tmp_path / "1.png").write_bytes(png())
    write_jsonl(tmp_path, [record, record, {"images": ["no.png"], "messages": chat()}], "d.jsonl")
    recipe = ["+recipe=llava_sft", "data=custom", f"data.tokenizer={digits}/tokenizer", "data.train=d.jsonl"]
    command = ["data", "index", *recipe, "data.index_dir=index", "--workers", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "3 samples in 1 files (1 indexed now)" in printed
    assert "1 bad samples" in printed and "line 3 of d.jsonl: cannot read image" in printed
    assert len(list((tmp_path / "index").iterdir())) == 2
    assert main(command) == 0
    assert "(0 indexed now)" in capsys.readouterr().out
    assert main([*command, "data.max_length=40"]) == 0
    assert "its index was made with another longest sample: made anew" in capsys.readouterr().out
    assert main(["data", "index", "d.jsonl"]) == 0
    assert "1 files" in capsys.readouterr().out
    assert main(["data", "index"]) == 2
    assert main(["data", "index", "nothing.jsonl"]) == 2
    assert "no such file nothing.jsonl" in capsys.readouterr().err


def test_columns_survive_the_way_to_a_file_and_back() -> None:
    from loongforge.data.meta_columns import MetaColumns

    rng = np.random.default_rng(0)
    metas = [SampleMeta(int(t), 1, ((int(t), 3),) * int(t % 3)) for t in rng.integers(1, 70000, 500)]
    metas[7] = metas[400] = SampleMeta(0, 0, (), "bad \udc80 \u2028")
    columns = MetaColumns(500)
    for i in rng.permutation(500).tolist():
        columns.put(i, metas[i])
    again = MetaColumns.of_arrays(columns.arrays())
    assert [again.get(i) for i in range(500)] == metas
    assert [MetaColumns.of_arrays(again.arrays()).get(i) for i in range(500)] == metas
