"""Formats of records other than our own, and images that records name or hold."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from loongforge.config.errors import UserError
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample, SampleError
from loongforge.data.sources import open_source
from tests.data.conftest import add_members, chat, png, write_jsonl

URI = "data:image/png;base64," + base64.b64encode(png(3)).decode()
TEXT = {"type": "text", "text": "Which digit is shown?"}


def _open(path: object, **options: Any) -> Any:
    return open_source(str(path), "data.train", **options)


def _load(folder: Path, record: dict[str, Any]) -> RawSample:
    return _open(write_jsonl(folder, [record])).load(0)


def _images(sample: RawSample) -> list[bytes]:
    return [read() for read in sample.images]


def _asks(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": "7"}]


def _url(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_openai_messages(tmp_path: Path, processor: SampleProcessor) -> None:
    (tmp_path / "a b.png").write_bytes(png(1))
    named = ["a b.png", URI, f"file://{tmp_path}/a%20b.png"]
    record = {"messages": [{"role": "developer", "content": "Be brief."}, *_asks(*map(_url, named), TEXT)]}
    sample = _load(tmp_path, record)
    assert _images(sample) == [png(1), png(3), png(1)]
    assert sample.messages[0] == {"role": "system", "content": "Be brief."}
    assert sample.messages[1]["content"] == [{"type": "image"}] * 3 + [TEXT]
    ours = {"images": ["a b.png"], "messages": chat()}
    theirs = {"messages": _asks({"type": "image_url", "image_url": "a b.png"}, TEXT)}
    ids = [processor(_load(tmp_path, one)).ids.tolist() for one in (ours, theirs)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("key", ["image", "url", "path", "base64"])
def test_image_parts_of_transformers(tmp_path: Path, key: str) -> None:
    (tmp_path / "1.png").write_bytes(png(3))
    value = URI.partition(",")[2] if key == "base64" else "1.png"
    sample = _load(tmp_path, {"messages": _asks({"type": "image", key: value}, TEXT)})
    assert _images(sample) == [png(3)]
    assert sample.messages[0]["content"] == [{"type": "image"}, TEXT]


def test_parts_only_say_where_images_go_that_are_given_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    part = {"type": "image", "path": "other.png"}
    assert _images(_load(tmp_path, {"images": ["1.png"], "messages": _asks(part, TEXT)})) == [png(1)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": _asks({"type": "image_url"})}, "must hold"),
        ({"messages": _asks(_url("data:image/png;base64"))}, "is not a data URI"),
        ({"messages": _asks(_url("data:image/png;base64,?!"))}, "is not base64"),
        ({"messages": _asks(_url("https://example.org/a.png"))}, "images are not downloaded"),
        ({"messages": _asks(_url("../a.png"))}, "leads out of"),
        ({"messages": _asks(_url("file:///etc/passwd"))}, "leads out of"),
        ({"messages": _asks(_url("s3://bucket/a.png"))}, "leads out of"),
        ({"images": ["a.png"], "messages": _asks(_url(URI))}, "give them in one way"),
        ({"messages": [*chat("hi")[:1], {"role": "assistant", "content": "x", "weight": 0}]}, "has weight 0"),
        ({"messages": chat("hi"), "images": [{"bytes": ""}]}, "must be a list of paths"),
        ({"texts": [{"user": "hi"}]}, "must be an object with 'user' and 'assistant'"),
    ],
)
def test_what_is_refused(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        _images(_load(tmp_path, record))


def test_sharegpt(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}, {"from": "user", "value": "and?"}]
    records = [
        {"id": "a", "conversations": turns[:2], "system": "Be brief."},
        {"id": "b", "conversations": [*turns, {"from": "chatgpt", "value": "so"}]},
        {"id": "c", "conversations": [{"from": "system", "value": "Be brief."}, *turns[:2]], "system": ""},
    ]
    (tmp_path / "s.json").write_text(json.dumps(records))
    source = _open(tmp_path / "s.json")
    roles = [[message["role"] for message in source.load(i).messages] for i in range(3)]
    assert roles == [["system", "user", "assistant"], ["user", "assistant"] * 2, ["system", "user", "assistant"]]
    assert source.load(0).messages[0]["content"] == "Be brief."


def test_data_uris_in_shards(tmp_path: Path) -> None:
    records = [{"messages": _asks(_url(URI), TEXT)}, {"messages": _asks(_url("1.png"), TEXT)}]
    members = [(f"k{i}.json", json.dumps(record).encode()) for i, record in enumerate(records)]
    add_members(tmp_path / "a.tar", members)
    source = _open(tmp_path / "a.tar")
    assert _images(source.load(0)) == [png(3)]
    with pytest.raises(SampleError, match=r"names the image '1\.png', but images of a shard are members"):
        source.load(1)


# Parquet and Arrow


def _rows() -> list[dict[str, Any]]:
    cell = {"bytes": png(3), "path": None}
    return [
        {"id": "one", "images": [cell], "messages": chat()},
        {
            "id": "two",
            "images": [{"bytes": png(i), "path": "x.png"} for i in (1, 2)],
            "messages": chat("<image><image>?"),
        },
        {"id": "named", "images": [{"bytes": None, "path": "4.png"}], "messages": chat()},
        {"id": "text", "images": None, "messages": chat("hi")},
    ]


def _expected() -> list[tuple[str, list[bytes]]]:
    return [("one", [png(3)]), ("two", [png(1), png(2)]), ("named", [png(4)]), ("text", [])]


def _write(path: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    """As `datasets` writes them: Parquet, or a stream of record batches."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.feather
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path, **options)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (path.parent / "4.png").write_bytes(png(4))
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_tables(tmp_path: Path, name: str) -> None:
    source = _open(_write(tmp_path / name, _rows()))
    assert len(source) == 4
    for i in (3, 0, 2, 1):
        sample = source.load(i)
        assert (sample.id, _images(sample)) == _expected()[i]
        assert sample.messages == _rows()[i]["messages"]
    assert str(source.locate(2)) == f"row 2 of {tmp_path / name}"


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_other_columns_and_types(tmp_path: Path, name: str) -> None:
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]
    rows = [
        {"image": png(1), "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "7"}]},
        {"image": None, "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "7"}]},
    ]
    source = _open(_write(tmp_path / "1" / name, rows))
    assert _images(source.load(0)) == [png(1)]
    assert (source.load(1).id, _images(source.load(1))) == (f"{name}:row 1", [])
    answer = {"role": "assistant", "content": [{"type": "text", "text": "7"}]}  # a column is all strings or all lists
    row = {"image": "4.png", "messages": [*_asks(*parts)[:1], answer], "other": b"x"}
    source = _open(_write(tmp_path / "2" / name, [row]))
    assert source.load(0).messages == [*_asks({"type": "image"}, {"type": "text", "text": "Which?"})[:1], answer]
    assert _images(source.load(0)) == [png(4)]
    source = _open(_write(tmp_path / "3" / name, [{"text": "raw"}]))
    assert source.load(0).text == "raw"
    columns = {"role": ["user", "assistant"], "content": ["hi", "7"]}  # how `Sequence({...})` is stored
    assert _open(_write(tmp_path / "4" / name, [{"messages": columns}])).load(0).messages == chat("hi")
    pairs = {
        "images": [{"bytes": png(1)}],
        "texts": [{"user": "Which?", "assistant": "7"}, {"user": "?", "assistant": "8"}],
    }
    sample = _open(_write(tmp_path / "5" / name, [pairs])).load(0)
    assert [message["role"] for message in sample.messages] == ["user", "assistant"] * 2
    assert sample.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "Which?"}]


def test_row_groups_are_read_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": str(i), "image": {"bytes": png(i), "path": None}, "messages": chat()} for i in range(40)]
    source = _open(_write(tmp_path / "a.parquet", rows, row_group_size=10))
    from loongforge.data.sources import table_files

    read: list[int] = []
    original = table_files.ParquetTable.read

    def counted(self: Any, group: int, columns: list[str]) -> Any:
        read.append(group)
        return original(self, group, columns)

    monkeypatch.setattr(table_files.ParquetTable, "read", counted)
    assert [_images(source.load(i)) for i in (25, 29, 20)] == [[png(i)] for i in (25, 29, 20)]
    assert read == [2, 2]  # its texts, and its images
    monkeypatch.setattr(table_files, "CACHE_BYTES", 0)
    assert [source.load(i).id for i in (0, 10, 0)] == ["0", "10", "0"]
    assert len(read) == 2 + 6
    monkeypatch.setattr(table_files, "MAX_GROUP_BYTES", 100)
    with pytest.raises(UserError, match=r"row group 3 of .*a\.parquet has .* smaller row groups"):
        source.load(35)


def test_folders_of_the_hub_and_of_datasets(tmp_path: Path) -> None:
    for part in range(2):
        _write(tmp_path / "d" / "train" / f"data-{part:05d}-of-00002.arrow", _rows())
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / "d" / "train" / name).write_text("{}")
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    source = _open(tmp_path / "d" / "train")
    assert len(source) == 8
    assert source.load(5).id == "two"
    with pytest.raises(UserError, match="it has the folders train: name one of them"):
        _open(tmp_path / "d")


def test_tables_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
        with pytest.raises(UserError, match=rf"cannot read .*{name}"):
            _open(tmp_path / name)
    with pytest.raises(UserError, match=r"has the columns \['question'\], none of messages"):
        _open(_write(tmp_path / "b.parquet", [{"question": "x"}]))
    source = _open(_write(tmp_path / "c.parquet", [{"image": 5, "messages": chat()}, {"image": 6, "messages": None}]))
    with pytest.raises(SampleError, match="image 0 is 5; expected"):
        source.load(0)
    with pytest.raises(SampleError, match=r"more than data\.max_sample_bytes=10"):
        _open(_write(tmp_path / "d.parquet", _rows())).load(0, 10)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"needs the package pyarrow: pip install 'loongforge\[hf\]'"):
        _open(tmp_path / "a.parquet")


def test_tables_in_other_processes(tmp_path: Path) -> None:
    import pickle

    source = pickle.loads(pickle.dumps(_open(_write(tmp_path / "a.parquet", _rows()))))
    assert [_images(source.load(i)) for i in range(4)] == [images for _, images in _expected()]


# Elsewhere than on this machine


@pytest.fixture
def memory() -> Any:
    import fsspec

    files = fsspec.filesystem("memory")
    yield files
    for path in files.find("/"):
        files.rm(path)


def _upload(memory: Any, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.endswith(".npz"):
            memory.pipe(f"/bucket/{path.relative_to(folder)}", path.read_bytes())


def test_remote_files(tmp_path: Path, memory: Any) -> None:
    from tests.data.conftest import write_tar

    write_tar(tmp_path / "t", 12)
    _write(tmp_path / "p" / "a.parquet", _rows())
    _write(tmp_path / "p2" / "a.arrow", _rows())
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "1.png").write_bytes(png(1))
    write_jsonl(tmp_path / "j", [{"id": "a", "images": ["1.png"], "messages": chat()}, {"text": "raw"}])
    _upload(memory, tmp_path)
    root = "memory://bucket"
    for pattern in (f"{root}/t/a-*.tar", f"{root}/t", f"{root}/t/a-{{00000..00001}}.tar"):
        source = _open(pattern)
        assert len(source) == 12
        assert (source.load(11).id, _images(source.load(11))) == ("id11", [png(11)])
    for pattern in (f"{root}/p", f"{root}/p2/a.arrow"):
        source = _open(pattern)
        assert [(sample.id, _images(sample)) for sample in map(source.load, range(4))] == _expected()
    source = _open(f"{root}/j/a.jsonl")
    assert _images(source.load(0)) == [png(1)]
    assert source.load(1).text == "raw"
    assert str(source.locate(1)) == f"line 2 of {root}/j/a.jsonl"
    assert not [path for path in memory.find("/bucket") if path.endswith(".npz")]


def test_remote_files_that_are_not_there(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/bucket/a.jsonl", json.dumps({"images": ["no.png"], "messages": chat()}).encode())
    with pytest.raises(UserError, match=r"no such file memory://bucket/b\.jsonl.* Did you mean 'a\.jsonl'"):
        _open("memory://bucket/b.jsonl")
    with pytest.raises(SampleError, match=r"cannot read image memory://.*no\.png"):
        _images(_open("memory://bucket/a.jsonl").load(0))
    with pytest.raises(UserError, match=r"cannot open nothing://bucket"):
        _open("nothing://bucket/a.jsonl")
    for path in ("../x.png", "/x.png", "memory://other/x.png", "memory://bucket/../x.png"):
        memory.pipe("/bucket/c.jsonl", json.dumps({"images": [path], "messages": chat()}).encode())
        with pytest.raises(SampleError, match="leads out of"):
            _open("memory://bucket/c.jsonl").load(0)


def test_remote_data_have_their_index_here(tmp_path: Path, memory: Any, processor: SampleProcessor) -> None:
    from contextlib import nullcontext

    from loongforge.data.indexing import MetadataIndexer, index_positions

    memory.pipe("/bucket/a.jsonl", b"".join(json.dumps({"text": f"{i}"}).encode() + b"\n" for i in range(5)))
    folder, url = str(tmp_path / "index"), "memory://bucket/a.jsonl"
    with pytest.raises(UserError, match=r"not on this machine; say with data\.index_dir"):
        index_positions(url, "data.train", index_dir=None, workers=1)
    for written in (1, 0):
        index_positions(url, "data.train", index_dir=folder, workers=1)
        indexer = MetadataIndexer([_open(url, index_dir=folder)], processor, decode=False, index_dir=folder)
        (report,) = indexer.run(1, lambda total: nullcontext(lambda number: None))
        assert (report.samples, report.written) == (5, written)


def test_a_connection_that_fails_is_tried_again(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/bucket/a.jsonl", b'{"text": "a"}\n')
    source = _open("memory://bucket/a.jsonl")
    monkeypatch.setattr("loongforge.data.sources.files._PAUSES", (0.0, 0.0))
    failures = [TimeoutError("slow"), ConnectionResetError("gone")]
    original = type(memory).cat_file

    def shaky(self: Any, *arguments: Any, **options: Any) -> bytes:
        if failures:
            raise failures.pop()
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", shaky)
    assert source.load(0).text == "a"
    failures += [TimeoutError("slow")] * 3
    with pytest.raises(UserError, match=r"cannot read memory://bucket/a\.jsonl: slow \(tried 3 times\)"):
        source.load(0)


# Several sources


def test_repeats_are_exact(tmp_path: Path) -> None:
    from collections import Counter

    from loongforge.config.schema import SourceConfig
    from loongforge.data.order import SampleOrder
    from loongforge.data.sources import open_sources

    for name, number in (("a", 3), ("b", 10), ("c", 5)):
        write_jsonl(tmp_path, [{"text": "x"}] * number, f"{name}.jsonl")
    spec = [SourceConfig(path=str(tmp_path / f"{n}.jsonl"), repeat=r) for n, r in (("a", 2), ("b", 0.1), ("c", 1))]
    opened = open_sources(spec, "data.train")
    order = SampleOrder([len(source) for source, _ in opened], [weight for _, weight in opened], seed=0)
    for round_ in range(3):
        drawn = Counter(order.at(12 * round_ + i) for i in range(12))  # 2 x 3 + 0.1 x 10 + 1 x 5
        assert [sum(n for (s, _), n in drawn.items() if s == source) for source in range(3)] == [6, 1, 5]
        assert {n for (s, _), n in drawn.items() if s == 0} == {2}
        assert {n for (s, _), n in drawn.items() if s == 2} == {1}
    spec[1].repeat = None
    with pytest.raises(UserError, match="with `repeat` and sources without"):
        open_sources(spec, "data.train")
    spec[1].repeat = 0
    with pytest.raises(UserError, match=r"data\.train\[1\]\.repeat=0 must be a positive number"):
        open_sources(spec, "data.train")
