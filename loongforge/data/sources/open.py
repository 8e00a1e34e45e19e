"""From a path or pattern of a recipe to a source."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from loongforge.config.errors import UserError, did_you_mean
from loongforge.config.schema import SourceConfig
from loongforge.data.sources.base import Source
from loongforge.data.sources.records import RecordSource
from loongforge.data.sources.shards import ShardSource

_RECORD_SUFFIXES = (".jsonl", ".json", ".ndjson")
_ALLOWED = "shards (.tar), JSONL (.jsonl) or LLaVA JSON (.json)"


def open_sources(
    spec: str | Sequence[SourceConfig], key: str, image_dir: str | None = None
) -> list[tuple[Source, float]]:
    """Opens everything that `data.train` or `data.eval` names.

    Args:
        spec: a path or pattern, or a list of {path, weight}.
        key: the recipe's key, for messages (`data.train`).
        image_dir: `data.image_dir`.

    Returns:
        (source, weight) of each, in the order given.

    Raises:
        UserError: nothing there, not readable, empty, or weights that make no sense.
    """
    if isinstance(spec, str):
        return [(open_source(spec, key, image_dir), 1.0)]
    if not spec:
        raise UserError(f"{key} is an empty list; give at least one {{path, weight}}")
    for i, source in enumerate(spec):
        if not 0 < source.weight < float("inf"):
            raise UserError(f"{key}[{i}].weight={source.weight} must be a positive number (path {source.path})")
    return [(open_source(source.path, f"{key}[{i}].path", image_dir), source.weight) for i, source in enumerate(spec)]


def open_source(pattern: str, key: str, image_dir: str | None = None) -> Source:
    """Opens one path, folder, or brace/glob pattern; see `open_sources`."""
    files = _files(pattern, key)
    kinds = {_kind(file, key) for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"{key}={pattern} matches shards and JSON files together; give them as a list of {{path, weight}}"
        )
    if kinds == {"shards"}:
        return ShardSource(pattern, files)
    return RecordSource(pattern, files, Path(image_dir) if image_dir is not None else None)


def list_files(pattern: str, key: str) -> list[str]:
    """The files that a path, folder or pattern names; UserError where one is not there."""
    return [str(file) for file in _files(pattern, key)]


def _kind(file: Path, key: str) -> str:
    if file.suffix == ".tar":
        return "shards"
    if file.suffix in _RECORD_SUFFIXES:
        return "records"
    raise UserError(f"{key}: cannot tell what {file} is; allowed: {_ALLOWED}")


def _files(pattern: str, key: str) -> list[Path]:
    """Files that a pattern names, sorted within each glob; every file that a brace pattern names must exist."""
    from braceexpand import braceexpand

    try:
        parts = list(braceexpand(os.path.expanduser(pattern)))
    except ValueError as error:
        raise UserError(f"{key}={pattern}: the braces do not match ({error})") from error
    if not pattern:
        raise UserError(f"{key} is empty; give a path or pattern of {_ALLOWED}")
    return [file for part in parts for file in _expand(part, pattern, key)]


def _expand(part: str, pattern: str, key: str) -> list[Path]:
    path = Path(part)
    if path.is_dir():
        return _in_folder(path, key)
    if path.exists():
        return [path]
    if glob.has_magic(part):
        found = sorted(Path(match) for match in glob.glob(part, recursive=True))
        files = [file for file in found if file.is_file() and not file.name.endswith(".index.npz")]
        if not files:
            raise UserError(f"{key}={pattern}: no file matches '{part}'{_nearby(path)}")
        return files
    what = "missing shard" if path.suffix == ".tar" else "no such file"
    raise UserError(f"{key}={pattern}: {what} {part}{_nearby(path)}")


def _in_folder(folder: Path, key: str) -> list[Path]:
    for suffixes in ((".tar",), _RECORD_SUFFIXES):
        files = sorted(file for file in folder.iterdir() if file.suffix in suffixes and file.is_file())
        if files:
            return files
    raise UserError(f"{key}: folder {folder} holds no {_ALLOWED}")


def _nearby(path: Path) -> str:
    """What the user may have meant, from what is there."""
    if not path.parent.is_dir():
        return f"; folder {path.parent} does not exist"
    return "." + did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()])
