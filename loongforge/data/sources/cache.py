"""Index files: arrays that took a pass over a data file to find, kept until the data file changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loongforge.data.sources.files import base_name, is_url

SUFFIXES = (".index.npz", ".meta.npz")
"""Ends of the names of index files: positions of samples, and what they hold."""


def cache_path(file: str, suffix: str, index_dir: str | None) -> Path | None:
    """Where the index of a data file lies: beside it, or in `index_dir`; None: nowhere, as the file is remote.

    In a folder of its own, the name says which of several files of one name it belongs to.
    """
    if index_dir is not None:
        whole = file if is_url(file) else os.path.abspath(file)
        return Path(index_dir) / f"{base_name(file)}.{hashlib.sha256(whole.encode()).hexdigest()[:12]}{suffix}"
    return None if is_url(file) else Path(file + suffix)


def check_writable(path: Path) -> None:
    """OSError where an index file cannot be written; better before an hour of measuring than after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()


def read_header(path: Path) -> dict[str, Any] | None:
    """What an index file says of itself; None where it is missing, torn or foreign."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
    except Exception:  # only a cache: anything wrong with it means "make it again"
        return None
    return header if isinstance(header, dict) else None


def read_arrays(path: Path, header: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays of an index file whose header is exactly this one; None where there is none such."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if json.loads(file["header"].tobytes()) != header:
                return None
            return {name: file[name] for name in file.files if name != "header"}
    except Exception:
        return None


def write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an index file; readers see the old one or the new one, whole. OSError where that is impossible."""
    encoded = np.frombuffer(json.dumps(header).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, header=encoded, **arrays)  # type: ignore[arg-type]
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def smallest(values: np.ndarray) -> np.ndarray:
    """The same numbers, at least 0, in as few bytes each as the largest needs."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


class Names:
    """Many short texts in one array of bytes: an object or a wide character array would take ten times that."""

    def __init__(self, text: np.ndarray, ends: np.ndarray):
        """Args:

        text: uint8, all names one after another in UTF-8.
        ends: where each ends in it.
        """
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, names: list[str]) -> Names:
        """Packs names."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), smallest(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")
