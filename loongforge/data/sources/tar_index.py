"""The index of a tar shard: where the members of every sample lie, so that any sample is one read away.

The index is a cache beside the shard (`NAME.tar.index.npz`), trusted only while the shard's size and modification
time are those it was made from, and made again otherwise. Members are read in place, never extracted to paths.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loongforge.config.errors import UserError

_VERSION = 1
_BLOCK = 512


@dataclass(frozen=True)
class TarIndex:
    """Samples of a shard in file order. Sample i has members `starts[i]:starts[i + 1]`."""

    stamp: np.ndarray  # int64 [3]: index version, size and mtime_ns of the tar
    starts: np.ndarray  # int64 [samples + 1]
    offsets: np.ndarray  # int64 [members], of the content
    sizes: np.ndarray  # int64 [members]
    keys: np.ndarray  # str [samples]
    suffixes: np.ndarray  # str [members], `json`, `0.png`, ...

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, sample: int) -> list[tuple[str, int, int]]:
        """(suffix, offset, size) of every member of a sample."""
        part = slice(self.starts[sample], self.starts[sample + 1])
        columns = self.suffixes[part].tolist(), self.offsets[part].tolist(), self.sizes[part].tolist()
        return list(zip(*columns, strict=True))


def index_path(tar: Path) -> Path:
    """Where the index of a shard lies."""
    return tar.with_name(tar.name + ".index.npz")


def load_index(tar: Path) -> TarIndex:
    """The index of a shard, made and cached where it is missing or does not fit.

    Raises:
        UserError: the shard cannot be read, is truncated, or is not an uncompressed tar file.
    """
    try:
        stat = tar.stat()
        stamp = np.array([_VERSION, stat.st_size, stat.st_mtime_ns], np.int64)
        cached = _read(index_path(tar), stamp)
        if cached is not None:
            return cached
        index = _scan(tar, stamp)
    except OSError as error:
        raise UserError(f"cannot read shard {tar}: {error.strerror or error}") from error
    with contextlib.suppress(OSError):  # a read-only folder: the index is made again next time
        _write(index, index_path(tar))
    return index


def _read(path: Path, stamp: np.ndarray) -> TarIndex | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            index = TarIndex(**{name: file[name] for name in TarIndex.__dataclass_fields__})
    except Exception:  # missing, torn or foreign: only a cache, so anything wrong with it means "make it again"
        return None
    return index if np.array_equal(index.stamp, stamp) else None


def _write(index: TarIndex, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **{name: getattr(index, name) for name in TarIndex.__dataclass_fields__})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _scan(tar: Path, stamp: np.ndarray) -> TarIndex:
    """Reads the headers of all members. webdataset's rule: the key ends at the first dot of the file name."""
    keys: list[str] = []
    starts: list[int] = []
    members: list[tuple[str, int, int]] = []
    for member in _regular_members(tar):
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if not keys or keys[-1] != key:
            keys.append(key)
            starts.append(len(members))
        members.append((suffix.lower(), member.offset_data, member.size))
    if not keys:
        raise UserError(f"shard {tar} holds no samples; expected members such as KEY.json and KEY.0.png")
    suffixes, offsets, sizes = zip(*members, strict=True)
    return TarIndex(
        stamp=stamp,
        starts=np.array([*starts, len(members)], np.int64),
        offsets=np.array(offsets, np.int64),
        sizes=np.array(sizes, np.int64),
        keys=np.array(keys),
        suffixes=np.array(suffixes),
    )


def _regular_members(tar: Path) -> list[tarfile.TarInfo]:
    """Files of the archive; raises where it does not end as a tar file ends."""
    with open(tar, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                members = archive.getmembers()
                end = archive.offset
        except tarfile.ReadError as error:
            size = tar.stat().st_size
            if size == 0 or _starts_like_tar(tar):
                raise UserError(_truncated(tar, size, str(error))) from error
            raise UserError(
                f"{tar} is not a tar file ({error}); shards are uncompressed .tar files, "
                "so decompress a .tar.gz or .tar.zst first"
            ) from error
        file.seek(end)  # where the closing blocks of zeros begin, or where the file just stops
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(_truncated(tar, tar.stat().st_size, "no end-of-archive mark"))
    return [member for member in members if member.isreg() and not member.name.startswith("__")]


def _truncated(tar: Path, size: int, why: str) -> str:
    return f"shard {tar} is truncated: it stops after {size} bytes ({why}); copy or build it again"


def _starts_like_tar(tar: Path) -> bool:
    with open(tar, "rb") as file:
        return file.read(_BLOCK)[257:262] == b"ustar"
