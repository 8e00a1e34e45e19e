"""The index of a tar shard: where the members of every sample lie, so that any sample is one read away.

The index is a cache beside the shard (`NAME.tar.index.npz`) or in `data.index_dir`, trusted only while the shard's
size and modification time are those it was made from, and made again otherwise. Members are read in place, never
extracted to paths; links, devices and names that lead elsewhere are refused all the same.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.sources.cache import Names, cache_path, read_arrays, smallest, write_arrays
from loongforge.data.sources.files import open_file, size_of, stamp

_VERSION = 2
_BLOCK = 512
_MEMBER_COLUMNS = ("blocks", "sizes", "refused", "suffixes")

Member = tuple[str, int, int, str]
"""Suffix, offset, size, and why it is refused or ""."""

REFUSED = (
    "",
    "a link",
    "a device, pipe or other special file",
    "an absolute name",
    "a name with '..'",
    "a sparse file",
)
"""Why a member is not read; the position in this list stands in the index."""


@dataclass(frozen=True)
class TarIndex:
    """Samples of a shard in file order. Sample i has members `starts[i]:starts[i + 1]`."""

    starts: np.ndarray  # [samples + 1]
    blocks: np.ndarray  # [members], where the content begins, in units of 512 bytes
    sizes: np.ndarray  # [members], bytes
    refused: np.ndarray  # uint8 [members], into REFUSED
    suffixes: np.ndarray  # [members], into `kinds`
    kinds: list[str]  # `json`, `0.png`, ...
    keys: Names  # [samples]

    def __len__(self) -> int:
        return len(self.keys)

    def members(self, sample: int) -> list[Member]:
        """Every member of a sample."""
        part = slice(int(self.starts[sample]), int(self.starts[sample + 1]))
        columns = (self.suffixes[part], self.blocks[part], self.sizes[part], self.refused[part])
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [(self.kinds[kind], block * _BLOCK, size, REFUSED[why]) for kind, block, size, why in rows]


def index_path(tar: str | Path, index_dir: str | None = None) -> Path | None:
    """Where the index of a shard lies; None: nowhere, as the shard is remote."""
    return cache_path(str(tar), ".index.npz", index_dir)


class CutShardError(UserError):
    """A shard that ends too early, or is damaged somewhere."""

    def __init__(self, message: str, shard: str, index: TarIndex):
        """`index`: of the samples before that place."""
        super().__init__(message)
        self.shard, self.index = shard, index


class _CutError(Exception):
    """Where, in bytes, and why."""


def load_index(tar: str | Path, index_dir: str | None = None) -> TarIndex:
    """The index of a shard, made and cached where it is missing or does not fit.

    Raises:
        UserError: the shard cannot be read, is truncated, or is not an uncompressed tar file.
    """
    path, file = index_path(tar, index_dir), str(tar)
    try:
        header = {"version": _VERSION, "data": stamp(file)}
        arrays = read_arrays(path, header) if path is not None else None
        if arrays is None:
            arrays = _scan(file)
            if path is not None:
                with contextlib.suppress(OSError):  # a read-only folder: the index is made again next time
                    write_arrays(path, header, arrays)
    except OSError as error:
        raise UserError(f"cannot read shard {tar}: {error.strerror or error}") from error
    return _unpacked(arrays)


def _unpacked(arrays: dict[str, np.ndarray]) -> TarIndex:
    kinds, keys = (Names(arrays.pop(f"{name}_text"), arrays.pop(f"{name}_ends")) for name in ("kinds", "keys"))
    return TarIndex(**arrays, kinds=[kinds[i] for i in range(len(kinds))], keys=keys)


def _scan(tar: str) -> dict[str, np.ndarray]:
    """Reads the headers of all members. webdataset's rule: the key ends at the first dot of the file name."""
    keys: list[str] = []
    starts: list[int] = []
    kinds: dict[str, int] = {}
    members: list[tuple[int, int, int, int]] = []
    cut: _CutError | None = None
    try:
        for member, refused in _members(tar):
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if not keys or keys[-1] != key:
                keys.append(key)
                starts.append(len(members))
            kind = kinds.setdefault(suffix.lower(), len(kinds))
            members.append((member.offset_data // _BLOCK, member.size, refused, kind))
    except _CutError as error:
        cut = error
    if cut is not None:
        _raise_cut(tar, cut, keys, starts, kinds, members)
    if not keys:
        raise UserError(f"shard {tar} holds no samples; expected members such as KEY.json and KEY.0.png")
    return _packed(keys, starts, kinds, members)


def _packed(
    keys: list[str], starts: list[int], kinds: dict[str, int], members: list[tuple[int, int, int, int]]
) -> dict[str, np.ndarray]:
    names = {"kinds": Names.of(list(kinds)), "keys": Names.of(keys)}
    columns = np.array(members, np.int64).T
    return {
        "starts": smallest(np.array([*starts, len(members)], np.int64)),
        **{name: smallest(column) for name, column in zip(_MEMBER_COLUMNS, columns, strict=True)},
        **{f"{name}_text": packed.text for name, packed in names.items()},
        **{f"{name}_ends": packed.ends for name, packed in names.items()},
    }


def _raise_cut(
    tar: str,
    cut: _CutError,
    keys: list[str],
    starts: list[int],
    kinds: dict[str, int],
    members: list[tuple[int, int, int, int]],
) -> NoReturn:
    """The last sample may not be whole; those before it are."""
    if len(keys) < 2:
        raise UserError(f"{_truncated(tar, cut)}; no whole sample is before that place; copy or build it again")
    whole = f"the {len(keys) - 1} samples before '{keys[-1]}' can be read"
    index = _unpacked(_packed(keys[:-1], starts[:-1], kinds, members[: starts[-1]]))
    raise CutShardError(f"{_truncated(tar, cut)}; {whole}; copy or build it again", tar, index)


def _members(tar: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Files of the archive, and why they are refused; raises where it does not end as a tar file ends."""
    with open_file(tar) as file:
        position = -1
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in _walk(archive):
                    if archive.offset <= position or member.size < 0:
                        raise tarfile.ReadError(f"the size of member '{member.name}' is negative")
                    position = archive.offset
                    if not member.isdir() and not member.name.startswith("__"):
                        yield member, _refusal(member)
                end = archive.offset
        except (tarfile.ReadError, RecursionError) as error:
            _check_tar(tar, error)
            raise _CutError(max(position, 0), str(error)) from error
        file.seek(end)  # where the closing blocks of zeros begin, or where the file just stops
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise _CutError(end, "no end-of-archive mark")


def _walk(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Its members, of which it keeps none. In an empty archive `next` of Python 3.10 seeks before the start."""
    if archive.firstmember is None:  # type: ignore[attr-defined]
        return
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]
        yield member


def _refusal(member: tarfile.TarInfo) -> int:
    name = member.name.replace("\\", "/")
    checks = (
        False,
        member.issym() or member.islnk(),
        not (member.isreg() or member.issym() or member.islnk()),
        name.startswith("/") or name[1:3] == ":/",
        ".." in name.split("/"),
        member.issparse(),
    )
    return checks.index(True) if True in checks else 0


def _check_tar(tar: str, error: Exception) -> None:
    with open_file(tar) as file:
        head = file.read(_BLOCK)
    if head and head[257:262] != b"ustar":
        raise UserError(
            f"{tar} is not a tar file ({error}); shards are uncompressed .tar files, "
            "so decompress a .tar.gz or .tar.zst first"
        ) from error


def _truncated(tar: str, cut: _CutError) -> str:
    place, why = cut.args
    size = size_of(tar)
    if place + _BLOCK <= size and why != "unexpected end of data":
        return f"shard {tar} is damaged after byte {place} of {size} ({why})"
    return f"shard {tar} is truncated: it stops after {size} bytes ({why})"
