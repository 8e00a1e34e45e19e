"""webdataset shards: tar files of `KEY.json` beside `KEY.0.png`, `KEY.1.jpg`, ... (or `KEY.txt` for raw text).

Or of packed rows (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from loongforge.data.sample import MAX_SAMPLE_BYTES, Location, RawSample, SampleError
from loongforge.data.sources.base import Part, find_part, number_through
from loongforge.data.sources.files import FileReader
from loongforge.data.sources.record import make_sample, parse_record
from loongforge.data.sources.references import Reader, decode_data_uri
from loongforge.data.sources.rows import documents_of
from loongforge.data.sources.tar_index import CutShardError, Member, TarIndex, load_index

_IMAGE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "ppm"})


class ShardSource:
    """Samples of several shards, numbered through."""

    image_dir: str | None = None

    def __init__(self, name: str, shards: Sequence[str], index_dir: str | None = None):
        self._set(name, shards, [load_index(shard, index_dir) for shard in shards])

    @classmethod
    def before_cut(cls, name: str, error: CutShardError) -> ShardSource:
        """What can be read of a shard that ends too early."""
        source = cls.__new__(cls)
        source._set(name, [error.shard], [error.index])
        return source

    def _set(self, name: str, shards: Sequence[str], indexes: list[TarIndex]) -> None:
        self.name = name
        self._indexes = indexes
        self.parts: Sequence[Part] = number_through(shards, [len(index) for index in self._indexes])
        self._reader = FileReader()

    def __len__(self) -> int:
        return self.parts[-1].stop

    def load(self, index: int, max_bytes: int = MAX_SAMPLE_BYTES) -> RawSample:
        """Reads one sample, or a row of packed ones; SampleError where one is malformed, or larger than `max_bytes`."""
        part, sample = find_part(self.parts, index)
        shard, key = self.parts[part].path, self._indexes[part].keys[sample]
        members = self._indexes[part].members(sample)
        _check(shard, key, members)
        documents = documents_of(members)
        if not documents:
            return self._sample(shard, key, members, max_bytes)
        row = [self._sample(shard, f"{key}.{number}", some, max_bytes) for number, some in enumerate(documents)]
        images = [read for document in row for read in document.images]
        return RawSample(id=key, images=images, has_own_id=False, documents=row)

    def _sample(self, shard: str, key: str, members: Sequence[Member], max_bytes: int) -> RawSample:
        total = sum(size for _, _, size, _ in members)
        if total > max_bytes:
            raise SampleError(
                f"its members have {total} bytes together, more than data.max_sample_bytes={max_bytes}",
                problem="too_many_bytes",
            )
        read = {suffix: partial(self._read, shard, offset, size) for suffix, offset, size, _ in members}
        if "json" in read:
            return make_sample(key, parse_record(read["json"]()), named=_named, given=_images(read))
        if "txt" in read:
            return make_sample(key, {"text": _decode(read["txt"]())}, named=_named, given=_images(read))
        raise SampleError(f"it has no {key}.json; its members end in {sorted(read)}", problem="shard_members")

    def locate(self, index: int) -> Location:
        """Says where a sample lies, without reading it."""
        part, sample = find_part(self.parts, index)
        return Location(self.name, self.parts[part].path, self._indexes[part].keys[sample])

    def _read(self, path: str, offset: int, size: int) -> bytes:
        content = self._reader.read(path, offset, size)
        if len(content) != size:
            raise SampleError(
                f"{path} ends inside it: {len(content)} of {size} bytes; the file changed during the run",
                problem="unreadable_source",
            )
        return content


def _check(shard: str, key: str, members: Sequence[Member]) -> None:
    for suffix, _, _, refused in members:
        if refused:
            raise SampleError(
                f"its member '{key}.{suffix}' in {shard} is or has {refused}; shards hold regular files with names "
                "inside the shard, nothing else is read",
                problem="shard_members",
            )
    suffixes = sorted(suffix for suffix, _, _, _ in members)
    if len(set(suffixes)) != len(suffixes):
        raise SampleError(f"two of its members have the same name: {suffixes}", problem="shard_members")


def _named(names: Sequence[str]) -> list[Reader]:
    """Images of a shard lie in it, or in the JSON itself."""
    for name in names:
        if not name.startswith("data:"):
            raise SampleError(
                f"it names the image '{name:.200}', but images of a shard are members of it (KEY.0.png, KEY.1.jpg, "
                "...) or data: URIs",
                problem="image_path",
            )
    return [partial(decode_data_uri, name) for name in names]


def _images(read: Mapping[str, Reader]) -> list[Reader]:
    """Images in order: `0.png`, `1.jpg`, ...; or the only one, `png`."""
    numbered: dict[int, Reader] = {}
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


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise SampleError(f"its text is not UTF-8: {error}", problem="not_utf8") from error
