"""Writes webdataset shards (tar files of `KEY.suffix` members), each with its index."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterable
from pathlib import Path

from loongforge.data.sources.tar_index import load_index


def write_shards(
    folder: Path, prefix: str, samples: Iterable[tuple[str, dict[str, bytes]]], per_shard: int
) -> list[Path]:
    """Writes `<prefix>-00000.tar`, `<prefix>-00001.tar`, ... and their indexes.

    Args:
        folder: an existing folder.
        prefix: first part of the file names.
        samples: (key, {suffix: content}) such as `("a", {"json": b"...", "0.png": b"..."})`.
        per_shard: samples of a shard.

    Returns:
        The shards. The same samples give the same bytes.
    """
    iterator = iter(samples)
    paths: list[Path] = []
    for number in itertools.count():
        first = next(iterator, None)
        if first is None:
            return paths
        path = folder / f"{prefix}-{number:05d}.tar"
        _write_shard(path, itertools.chain([first], itertools.islice(iterator, per_shard - 1)))
        load_index(path)
        paths.append(path)
    raise AssertionError("unreachable")


def _write_shard(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    """One sample is in memory at a time."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, members in samples:
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            tar.members = []  # type: ignore[attr-defined]  # it remembers them all
