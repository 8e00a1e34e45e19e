"""webdataset shards: tar files of `KEY.json` beside `KEY.0.png`, `KEY.1.jpg`, ... (or `KEY.txt` for raw text)."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from loongforge.data.sample import TEXT_WITH_IMAGES, Location, RawSample, SampleError, id_of, messages_of, text_of
from loongforge.data.sources.base import FileReader
from loongforge.data.sources.tar_index import load_index

_IMAGE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm"})


class ShardSource:
    """Samples of several shards, numbered through."""

    def __init__(self, name: str, shards: list[Path]):
        self.name = name
        self._shards = shards
        self._indexes = [load_index(shard) for shard in shards]
        self._starts = [0, *itertools.accumulate(len(index) for index in self._indexes)]
        self._reader = FileReader()

    def __len__(self) -> int:
        return self._starts[-1]

    def load(self, index: int) -> RawSample:
        """Reads one sample; SampleError where it is malformed."""
        shard, sample = self._find(index)
        key = str(self._indexes[shard].keys[sample])
        members = self._indexes[shard].members(sample)
        read = {suffix: partial(self._read, self._shards[shard], offset, size) for suffix, offset, size in members}
        if len(read) != len(members):
            raise SampleError(
                f"two of its members have the same name: {sorted(suffix for suffix, _, _ in members)}",
                problem="shard_members",
            )
        if "json" not in read:
            if "txt" in read:
                return _raw_text(key, _decode(read["txt"]()), read, has_own_id=False)
            raise SampleError(f"it has no {key}.json; its members end in {sorted(read)}", problem="shard_members")
        record = parse_record(read["json"]())
        name, own = id_of(record, key)
        text = text_of(record)
        if text is not None:
            return _raw_text(name, text, read, has_own_id=own)
        return RawSample(id=name, messages=messages_of(record), images=_images(read), has_own_id=own)

    def locate(self, index: int) -> Location:
        """Says where a sample lies, without reading it."""
        shard, sample = self._find(index)
        return Location(self.name, str(self._shards[shard]), str(self._indexes[shard].keys[sample]))

    def _find(self, index: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        content = self._reader.read(path, offset, size)
        if len(content) != size:
            raise SampleError(
                f"{path} ends inside it: {len(content)} of {size} bytes; the file changed during the run",
                problem="unreadable_source",
            )
        return content


def _raw_text(name: str, text: str, read: Mapping[str, Callable[[], bytes]], *, has_own_id: bool) -> RawSample:
    if _images(read):
        raise SampleError(TEXT_WITH_IMAGES, problem="text_with_images")
    return RawSample(id=name, text=text, has_own_id=has_own_id)


def _images(read: Mapping[str, Callable[[], bytes]]) -> list[Callable[[], bytes]]:
    """Images in order: `0.png`, `1.jpg`, ...; or the only one, `png`."""
    numbered: dict[int, Callable[[], bytes]] = {}
    for suffix, reader in read.items():
        number, _, kind = suffix.rpartition(".")
        if kind not in _IMAGE_SUFFIXES or not (number.isdecimal() or number == ""):
            continue
        if int(number or 0) in numbered:
            raise SampleError(
                f"two of its members are image {int(number or 0)}: {sorted(read)}", problem="shard_members"
            )
        numbered[int(number or 0)] = reader
    if sorted(numbered) != list(range(len(numbered))):
        raise SampleError(f"its images are numbered {sorted(numbered)}, not 0, 1, 2, ...", problem="shard_members")
    return [numbered[i] for i in range(len(numbered))]


def parse_record(line: bytes) -> dict:
    """A JSON object from bytes; SampleError where it is none."""
    try:
        record = json.loads(line)
        if b"\\ud" in line.lower():  # half of a surrogate pair is no text, and no tokenizer takes it
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise SampleError(f"it is not UTF-8: {error}", problem="not_utf8") from error
    except (ValueError, RecursionError) as error:
        raise SampleError(f"it is not valid JSON: {error}", problem="invalid_json") from error
    if not isinstance(record, dict):
        raise SampleError(f"it is not a JSON object but {record!r:.80}", problem="invalid_json")
    return record


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SampleError(f"its text is not UTF-8: {error}", problem="not_utf8") from error
