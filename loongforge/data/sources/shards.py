"""webdataset shards: tar files of `KEY.json` beside `KEY.0.png`, `KEY.1.jpg`, ... (or `KEY.txt` for raw text)."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from loongforge.data.sample import Location, RawSample, SampleError, messages_of, text_of
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
        read = {
            suffix: partial(self._read, self._shards[shard], offset, size)
            for suffix, offset, size in self._indexes[shard].members(sample)
        }
        if "json" not in read:
            if "txt" in read:
                return RawSample(id=key, text=_decode(read["txt"]()))
            raise SampleError(f"it has no {key}.json; its members end in {sorted(read)}")
        record = parse_record(read["json"]())
        name = str(record.get("id", key))
        text = text_of(record)
        if text is not None:
            return RawSample(id=name, text=text)
        return RawSample(id=name, messages=messages_of(record), images=_images(read))

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
            raise SampleError(f"{path} ends inside it: {len(content)} of {size} bytes; the file changed during the run")
        return content


def _images(read: Mapping[str, Callable[[], bytes]]) -> list[Callable[[], bytes]]:
    """Images in order: `0.png`, `1.jpg`, ...; or the only one, `png`."""
    numbered: dict[int, Callable[[], bytes]] = {}
    for suffix, reader in read.items():
        number, _, kind = suffix.rpartition(".")
        if kind not in _IMAGE_SUFFIXES or not (number.isdecimal() or number == ""):
            continue
        if int(number or 0) in numbered:
            raise SampleError(f"two of its members are image {int(number or 0)}: {sorted(read)}")
        numbered[int(number or 0)] = reader
    if sorted(numbered) != list(range(len(numbered))):
        raise SampleError(f"its images are numbered {sorted(numbered)}, not 0, 1, 2, ...")
    return [numbered[i] for i in range(len(numbered))]


def parse_record(line: bytes) -> dict:
    """A JSON object from bytes; SampleError where it is none."""
    try:
        record = json.loads(line)
    except ValueError as error:
        raise SampleError(f"it is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise SampleError(f"it is not a JSON object but {record!r:.80}")
    return record


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SampleError(f"its text is not UTF-8: {error}") from error
