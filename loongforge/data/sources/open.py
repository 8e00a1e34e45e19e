"""From a path or pattern of a recipe to a source."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from fractions import Fraction

from loongforge.config.errors import UserError, did_you_mean
from loongforge.config.schema import SourceConfig
from loongforge.data.sources.base import Source
from loongforge.data.sources.cache import SUFFIXES
from loongforge.data.sources.files import base_name, entries, exists, folder_of, is_folder, is_url, local_path, matches
from loongforge.data.sources.records import RecordSource
from loongforge.data.sources.shards import ShardSource

_KINDS = {
    ".tar": "shards",
    **dict.fromkeys((".parquet", ".arrow", ".feather"), "tables"),
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "records"),
}
_ALLOWED = "shards (.tar), JSONL (.jsonl), LLaVA or ShareGPT JSON (.json), Parquet or Arrow (.parquet, .arrow)"
_FOLDERS = ((".tar",), (".parquet",), (".arrow",), (".jsonl", ".json", ".ndjson"))
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # by `datasets`; no samples


def open_sources(
    spec: str | Sequence[SourceConfig], key: str, image_dir: str | None = None, index_dir: str | None = None
) -> list[tuple[Source, float]]:
    """Opens everything that `data.train` or `data.eval` names.

    Args:
        spec: a path or pattern, or a list of {path, weight} or {path, repeat}.
        key: the recipe's key, for messages (`data.train`).
        image_dir: `data.image_dir`.
        index_dir: `data.index_dir`.

    Returns:
        (source, weight) of each, in the order given.

    Raises:
        UserError: nothing there, not readable, empty, or weights that make no sense.
    """
    if isinstance(spec, str):
        return [(open_source(spec, key, image_dir, index_dir), 1.0)]
    if not spec:
        raise UserError(f"{key} is an empty list; give at least one {{path, weight}}")
    for i, source in enumerate(spec):
        for name in ("weight", "repeat"):
            value = getattr(source, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{key}[{i}].{name}={value} must be a positive number (path {source.path})")
    opened = [open_source(source.path, f"{key}[{i}].path", image_dir, index_dir) for i, source in enumerate(spec)]
    return list(zip(opened, _weights(spec, [len(source) for source in opened], key), strict=True))


def _weights(spec: Sequence[SourceConfig], sizes: Sequence[int], key: str) -> list[float]:
    repeats = [source.repeat for source in spec if source.repeat is not None]
    if not repeats:
        return [source.weight for source in spec]
    if len(repeats) < len(spec):
        raise UserError(f"{key} has sources with `repeat` and sources without; give it for all of them, or none")
    # in decimals, since shares are exact and 3 * 0.1 is not 0.3
    return [float(Fraction(str(repeat)) * size) for repeat, size in zip(repeats, sizes, strict=True)]


def open_source(pattern: str, key: str, image_dir: str | None = None, index_dir: str | None = None) -> Source:
    """Opens one path, folder, or brace/glob pattern; see `open_sources`."""
    kind, files = find_files(pattern, key)
    image_dir = local_path(image_dir) if image_dir is not None else None
    if kind == "shards":
        return ShardSource(pattern, files, index_dir)
    if kind == "records":
        return RecordSource(pattern, files, image_dir, index_dir)
    from loongforge.data.sources.tables import TableSource

    return TableSource(pattern, files, image_dir)


def list_files(pattern: str, key: str) -> list[str]:
    """The files that a path, folder or pattern names; UserError where one is not there."""
    return find_files(pattern, key)[1]


def find_files(pattern: str, key: str) -> tuple[str, list[str]]:
    """(`shards`, `records` or `tables`, the files that a pattern names, sorted within each glob).

    Raises:
        UserError: a file is missing or of no known kind, or they are of several kinds.
    """
    from braceexpand import braceexpand

    if not pattern:
        raise UserError(f"{key} is empty; give a path or pattern of {_ALLOWED}")
    try:
        parts = list(braceexpand(local_path(pattern)))
    except ValueError as error:
        raise UserError(f"{key}={pattern}: the braces do not match ({error})") from error
    files = [file for part in parts for file in _expand(part, pattern, key)]
    kinds = {_kind(file, key) for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"{key}={pattern} matches {' and '.join(sorted(kinds))} together; give them as a list of {{path, weight}}"
        )
    return kinds.pop(), files


def _kind(file: str, key: str) -> str:
    kind = _KINDS.get(_ending(file))
    if kind is None:
        raise UserError(f"{key}: cannot tell what {file} is; allowed: {_ALLOWED}")
    return kind


def _ending(file: str) -> str:
    return os.path.splitext(base_name(file))[1]


def _expand(part: str, pattern: str, key: str) -> list[str]:
    if is_folder(part):
        return _in_folder(part, key)
    if exists(part):
        return [part]
    if glob.has_magic(part):
        files = [file for file in matches(part) if not file.endswith(SUFFIXES)]
        if not files:
            raise UserError(f"{key}={pattern}: no file matches '{part}'{_nearby(part)}")
        return files
    what = "missing shard" if part.endswith(".tar") else "no such file"
    raise UserError(f"{key}={pattern}: {what} {part}{_nearby(part)}")


def _in_folder(folder: str, key: str) -> list[str]:
    inside = entries(folder)
    for endings in _FOLDERS:
        found = [file for file in inside if _ending(file) in endings and base_name(file) not in _ABOUT]
        if found:
            return found
    below = [base_name(entry) for entry in inside if is_folder(entry)]
    hint = f"; it has the folders {', '.join(below)}: name one of them" if below else ""
    raise UserError(f"{key}: folder {folder} holds no {_ALLOWED}{hint}")


def _nearby(path: str) -> str:
    """What the user may have meant, from what is there."""
    folder = folder_of(path) or ("" if is_url(path) else ".")
    if not is_folder(folder):
        return f"; folder {folder} does not exist"
    return "." + did_you_mean(base_name(path), [base_name(entry) for entry in entries(folder)])
