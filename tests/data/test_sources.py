from __future__ import annotations

import base64
import copy
import io
import json
import os
import re
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loongforge.config.errors import UserError
from loongforge.config.schema import SourceConfig
from loongforge.data.fetch import SampleFetcher
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import SampleError
from loongforge.data.sources import open_source, open_sources
from loongforge.data.sources.tar_index import index_path, load_index
from tests.data.conftest import add_members, chat, png, shard_sample, write_jsonl, write_tar


def _open(path: object, **options: Any) -> Any:
    return open_source(str(path), "data.train", **options)


def test_shards_round_trip_in_any_order(tmp_path: Path) -> None:
    write_tar(tmp_path, 25)
    source = _open(tmp_path / "a-*.tar")
    assert len(source) == 25
    for i in (24, 0, 10, 9):
        sample = source.load(i)
        assert (sample.id, sample.messages[1]["content"]) == (f"id{i}", str(i))
        assert [read() for read in sample.images] == [png(i)]
    assert source.locate(24).shard.endswith("a-00002.tar")
    assert source.locate(24).key == "s0024"


def test_webdataset_reads_the_same_samples(digits: Path) -> None:
    import webdataset

    source = _open(digits / "val-00000.tar")
    stream = webdataset.WebDataset(str(digits / "val-00000.tar"), shardshuffle=False)
    count = 0
    for i, theirs in enumerate(stream):
        ours = source.load(i)
        assert theirs["__key__"] == source.locate(i).key
        assert json.loads(theirs["json"])["messages"] == ours.messages
        assert theirs["0.png"] == ours.images[0]()
        count += 1
    assert count == len(source)


def test_shards_written_by_webdataset_and_by_tar(tmp_path: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"dir.x/k{i}", "json": {"messages": chat()}, "0.png": png(i), "1.jpg": png(9)})
    source = _open(tmp_path / "w.tar")
    assert len(source) == 3
    assert source.load(2).id == "dir.x/k2"
    assert [read() for read in source.load(2).images] == [png(2), png(9)]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.txt").write_text("one")
    os.system(f"tar -C {tmp_path} -cf {tmp_path}/t.tar t")
    assert _open(tmp_path / "t.tar").load(0).text == "one"


def test_index_is_made_cached_and_made_again(tmp_path: Path) -> None:
    (tar,) = write_tar(tmp_path, 3)
    index_path(tar).unlink()
    assert len(load_index(tar)) == 3
    made = index_path(tar).read_bytes()
    load_index(tar)
    assert index_path(tar).read_bytes() == made
    index_path(tar).write_bytes(made[: len(made) // 2])  # torn
    assert len(load_index(tar)) == 3
    assert index_path(tar).read_bytes() == made
    add_members(tar, [(f"{k}.{s}", c) for k, m in map(shard_sample, range(5)) for s, c in m.items()])
    assert len(load_index(tar)) == 5  # the tar changed
    assert sorted(p.name for p in tmp_path.iterdir()) == [tar.name, index_path(tar).name]


def test_index_of_a_tar_of_the_same_size_but_changed(tmp_path: Path) -> None:
    (tar,) = write_tar(tmp_path, 2)
    size = tar.stat().st_size
    add_members(tar, [("x.json", b"{}"), ("y.json", b"{}"), ("y.0.png", png()), ("y.1.png", png())])
    assert tar.stat().st_size == size
    assert [load_index(tar).keys[i] for i in range(2)] == ["x", "y"]


def test_many_threads_make_one_index(tmp_path: Path) -> None:
    (tar,) = write_tar(tmp_path, 5)
    index_path(tar).unlink()
    lengths: list[int] = []
    threads = [threading.Thread(target=lambda: lengths.append(len(load_index(tar)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == [5] * 8
    assert sorted(p.name for p in tmp_path.iterdir()) == [tar.name, index_path(tar).name]


@pytest.mark.parametrize("keep_index", [True, False])
@pytest.mark.parametrize("where", ["header", "content", "between", "nothing"])
def test_truncated_tar(tmp_path: Path, where: str, keep_index: bool) -> None:
    (tar,) = write_tar(tmp_path, 5)
    offset = load_index(tar).members(1)[1][1]
    size = {"header": offset - 100, "content": offset + 20, "between": offset - 512, "nothing": 0}[where]
    os.truncate(tar, size)
    if not keep_index:
        index_path(tar).unlink()
    with pytest.raises(UserError, match=rf"{tar}.* truncated: it stops after {size} bytes"):
        _open(tar)


def test_not_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"PK" * 2000)
    with pytest.raises(UserError, match="is not a tar file"):
        _open(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "a.json")
    with pytest.raises(UserError, match="decompress"):
        _open(tmp_path / "z.tar")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(UserError, match="holds no samples"):
        _open(tmp_path / "empty.tar")


def test_missing_shard_and_empty_pattern(tmp_path: Path) -> None:
    write_tar(tmp_path, 30)
    assert len(_open(tmp_path / "a-{00000..00002}.tar")) == 30
    assert len(_open(tmp_path)) == 30
    with pytest.raises(UserError, match=r"data\.train=.*missing shard .*a-00003\.tar.*Did you mean 'a-0000"):
        _open(tmp_path / "a-{00000..00003}.tar")
    with pytest.raises(UserError, match=r"no file matches '.*b-\*\.tar'"):
        _open(tmp_path / "b-*.tar")
    with pytest.raises(UserError, match=r"folder .* does not exist"):
        _open(tmp_path / "none" / "a.jsonl")
    with pytest.raises(UserError, match="braces"):
        _open(tmp_path / "a-{00000..00003.tar")
    with pytest.raises(UserError, match="is empty"):
        _open("")
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="holds no shards"):
        _open(tmp_path / "e")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(UserError, match=r"cannot tell what .*a\.csv is"):
        _open(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("k.0.png", png())], r"it has no k\.json; its members end in \['0.png'\]"),
        ([("k.json", b"{nope")], "not valid JSON"),
        ([("k.json", b"[1]")], "not a JSON object"),
        ([("k.json", b"{}")], "none of 'messages', 'conversations', 'text'"),
        ([("k.json", b'{"messages": "hi"}')], "'messages' must be a list"),
        ([("k.json", b'{"messages": [{"role": 1}]}')], r"messages\[0\] must be an object"),
        ([("k.json", b'{"messages": [{"role": "user", "content": ""}]}'), ("k.1.png", b"")], r"numbered \[1\]"),
        ([("k.json", b'{"messages": [{"role": "user", "content": ""}]}'), ("k.0.png", b""), ("k.0.jpg", b"")], "two"),
        ([("k.json", b'{"text": 5}')], "'text' must be a string"),
    ],
)
def test_malformed_shard_samples(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    add_members(tmp_path / "a.tar", members)
    with pytest.raises(SampleError, match=message):
        _open(tmp_path / "a.tar").load(0)


def _link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("bad.0.png", tarfile.SYMTYPE, "a link"),
        ("bad.json", tarfile.LNKTYPE, "a link"),
        ("bad.0.png", tarfile.CHRTYPE, "a device"),
        ("bad.0.png", tarfile.FIFOTYPE, "a device, pipe"),
        ("/etc/bad.json", tarfile.REGTYPE, "an absolute name"),
        ("C:\\bad.json", tarfile.REGTYPE, "an absolute name"),
        ("../../bad.json", tarfile.REGTYPE, "a name with '..'"),
        ("a/../bad.json", tarfile.REGTYPE, "a name with '..'"),
        ("..\\bad.json", tarfile.REGTYPE, "a name with '..'"),
        ("bad.0.png", tarfile.GNUTYPE_SPARSE, "a sparse file"),
    ],
)
def test_members_that_are_no_plain_files_are_refused(tmp_path: Path, name: str, kind: bytes, why: str) -> None:
    good = json.dumps({"messages": chat("hi")}).encode()
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for info in (tarfile.TarInfo("first.json"), _link(name, kind), tarfile.TarInfo("last.json")):
            info.size = len(good) if info.type == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(good))
    source = _open(tmp_path / "a.tar")
    assert len(source) == 3
    assert [source.load(i).messages for i in (0, 2)] == [chat("hi")] * 2
    member = re.escape(f"'{name}' in {tmp_path / 'a.tar'}")
    for again in (source, _open(tmp_path / "a.tar")):  # scanned, and from the index
        with pytest.raises(SampleError, match=rf"its member {member} is or has {why}"):
            again.load(1)


def test_members_of_negative_size_do_not_hang(tmp_path: Path) -> None:
    add_members(tmp_path / "a.tar", [("a.json", b"{}"), ("b.json", b"{}"), ("c.json", b"{}")])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    header = content[1024:1536]
    header[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")  # in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar .*negative"):
        _open(tmp_path / "a.tar")


def test_size_of_a_sample_is_bounded(tmp_path: Path, processor: SampleProcessor) -> None:
    image = _noise()
    write_tar(tmp_path / "t", 1)
    (tmp_path / "1.png").write_bytes(image)
    records = [{"images": ["1.png"], "messages": chat()}, {"images": ["1.png"] * 9, "messages": chat("<image>" * 9)}]
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(image).decode()}}
    records.append({"messages": chat([part] * 9)})  # type: ignore[arg-type]
    lines, shards = _open(write_jsonl(tmp_path, records)), _open(tmp_path / "t")
    with pytest.raises(SampleError, match=r"its members have \d+ bytes together, more than data\.max_sample_bytes=99"):
        shards.load(0, 99)
    with pytest.raises(SampleError, match=r"more than data\.max_sample_bytes=999"):
        lines.load(2, 999)
    with pytest.raises(SampleError, match=r"1\.png has more than 999 bytes"):
        SampleFetcher([lines], _bounded(processor, 999)).fetch(0, 0)
    assert len(image) > 999
    with pytest.raises(SampleError, match=r"more than data\.max_sample_bytes=8000 together"):
        SampleFetcher([lines], _bounded(processor, 8000)).fetch(0, 1)
    assert len(SampleFetcher([lines], _bounded(processor, 9 * len(image))).fetch(0, 1).pixels) == 9


def _noise() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _bounded(processor: SampleProcessor, limit: int) -> SampleProcessor:
    bounded = copy.copy(processor)
    bounded.max_sample_bytes = limit
    return bounded


def test_jsonl_round_trip(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "é.png").write_bytes(png(5))
    records: list[dict | str] = [
        {"id": "é1", "images": ["img/é.png"], "messages": chat("<image>\nçà?")},
        "",
        {"messages": chat("hi")},
        {"id": 7, "text": "raw"},
    ]
    source = _open(write_jsonl(tmp_path, records))
    assert len(source) == 3
    assert source.load(0).id == "é1"
    assert [read() for read in source.load(0).images] == [png(5)]
    assert source.load(0).messages == chat("<image>\nçà?")
    assert source.load(1).id == "a.jsonl:line 3"
    assert (source.load(2).id, source.load(2).text) == ("7", "raw")
    assert str(source.locate(2)) == f"line 4 of {tmp_path / 'a.jsonl'}"


def test_jsonl_of_other_editors(tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "text": "x" * i}) for i in range(4)]
    (tmp_path / "w.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "  ", ""]).encode())
    (tmp_path / "u.jsonl").write_text("\n".join(lines))  # no line break at the end
    for name in ("w.jsonl", "u.jsonl"):
        source = _open(tmp_path / name)
        assert [source.load(i).id for i in range(len(source))] == ["0", "1", "2", "3"]
    (tmp_path / "e.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="holds no samples"):
        _open(tmp_path / "e.jsonl")


def test_jsonl_bad_line_is_a_bad_sample(tmp_path: Path) -> None:
    source = _open(write_jsonl(tmp_path, ["{nope", {"images": 5, "messages": chat()}, {"text": "fine"}]))
    with pytest.raises(SampleError, match="not valid JSON"):
        source.load(0)
    with pytest.raises(SampleError, match="'images' must be a list of paths"):
        source.load(1)
    assert source.load(2).text == "fine"


def test_llava_json(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWas ist das? ü"}, {"from": "gpt", "value": "Eine 7"}]
    text_only = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    records = [
        {"id": 1, "image": "1.png", "conversations": turns},
        {"id": "b", "conversations": text_only},
        {"id": "c", "image": ["1.png", "1.png"], "conversations": turns},
    ]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(png(1))
    for indent, ascii_only in ((None, True), (2, False)):
        (tmp_path / "l.json").write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only))
        source = _open(tmp_path / "l.json", image_dir=str(tmp_path / "pictures"))
        assert [source.load(i).id for i in range(len(source))] == ["1", "b", "c"]
        assert source.load(0).messages == chat(turns[0]["value"], "Eine 7")
        assert [[read() for read in source.load(i).images] for i in range(3)] == [[png(1)], [], [png(1)] * 2]
    assert source.locate(2).key == "entry 2"


@pytest.mark.parametrize("content", ['[{"id": 1}, ', '[{"id": 1} {"id": 2}]', "[", '[{"id": nope}]'])
def test_torn_llava_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "l.json").write_text(content)
    with pytest.raises(UserError, match=r"l\.json is not valid JSON.*entry \d"):
        _open(tmp_path / "l.json")


def test_image_paths_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        source = _open(write_jsonl(tmp_path / "d", [{"images": [path], "messages": chat()}]))
        with pytest.raises(SampleError, match=r"leads out of .*set data\.image_dir"):
            source.load(0)
        inside = _open(tmp_path / "d" / "a.jsonl", image_dir=str(tmp_path))
        if path.startswith("/"):
            assert inside.load(0).images[0]() == png()
    missing = _open(write_jsonl(tmp_path / "d", [{"images": ["no.png"], "messages": chat()}])).load(0)
    with pytest.raises(SampleError, match=r"cannot read image .*no\.png: No such file"):
        missing.images[0]()


def test_weights_must_make_sense(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [{"text": "x"}])
    path = str(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"data\.train\[1\]\.weight=-1"):
        open_sources([SourceConfig(path=path), SourceConfig(path=path, weight=-1)], "data.train")
    with pytest.raises(UserError, match=r"data\.train\[0\]\.path=.*no such file"):
        open_sources([SourceConfig(path=path + "x")], "data.train")
    with pytest.raises(UserError, match="empty list"):
        open_sources([], "data.train")
