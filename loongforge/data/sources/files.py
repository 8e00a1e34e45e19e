"""Files on this machine, or on anything that fsspec opens (`s3://`, `gs://`, `hf://`, `memory://`).

Paths are strings; one with `://` is fsspec's. What is on this machine is read without fsspec.
"""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

from loongforge.config.errors import UserError

Result = TypeVar("Result")

_PAUSES = (0.5, 2.0, 8.0)  # seconds before a remote file is tried again
_OPEN_FILES = 128  # kept open by a reader


def is_url(path: str) -> bool:
    """Whether fsspec has to open it."""
    return "://" in path


def local_path(path: str) -> str:
    """A path as it is used here: `~` expanded, `file://` taken off."""
    if path.startswith("file://"):
        return unquote(urlsplit(path).path)
    return path if is_url(path) else os.path.expanduser(path)


def base_name(path: str) -> str:
    """The last part."""
    return path.rstrip("/").rpartition("/")[2] if is_url(path) else os.path.basename(path)


def folder_of(path: str) -> str:
    """The folder that holds a file."""
    return path.rpartition("/")[0] if is_url(path) else os.path.dirname(path)


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    return _remote(path, lambda fs, key: fs.exists(key)) if is_url(path) else os.path.exists(path)


def is_folder(path: str) -> bool:
    """Whether it is a folder."""
    return _remote(path, lambda fs, key: fs.isdir(key)) if is_url(path) else os.path.isdir(path)


def matches(pattern: str) -> list[str]:
    """Files that a glob pattern names, sorted."""
    if not is_url(pattern):
        return sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
    return sorted(_remote(pattern, lambda fs, key: [fs.unstrip_protocol(k) for k in fs.glob(key) if fs.isfile(k)]))


def entries(folder: str) -> list[str]:
    """Everything in a folder, sorted; none where it is no folder."""
    if not is_url(folder):
        return sorted(os.path.join(folder, name) for name in os.listdir(folder)) if os.path.isdir(folder) else []
    return sorted(_remote(folder, lambda fs, key: [fs.unstrip_protocol(k) for k in fs.ls(key, detail=False)]))


def stamp(path: str) -> str:
    """Changes when the file does: size and time of change, or what the remote store says of it.

    Raises:
        OSError: there is no such file.
    """
    if not is_url(path):
        stat = os.stat(path)
        return f"{stat.st_size}:{stat.st_mtime_ns}"
    info = _remote(path, lambda fs, key: fs.info(key))
    known = [str(info[key]) for key in ("ETag", "etag", "mtime", "LastModified", "created", "updated") if key in info]
    return f"{info['size']}:{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}"


def size_of(path: str) -> int:
    """Bytes of a file; OSError where there is none."""
    return int(_remote(path, lambda fs, key: fs.size(key))) if is_url(path) else os.stat(path).st_size


def open_file(path: str) -> BinaryIO:
    """Opens for reading bytes, with seek; OSError where there is no such file."""
    if is_url(path):
        return cast(BinaryIO, _remote(path, lambda fs, key: fs.open(key, "rb")))
    return open(path, "rb")


class FileReader:
    """Reads parts of files at given offsets; keeps files open, and shares no file position between threads."""

    def __init__(self) -> None:
        self._handles: dict[str, int] = {}

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer only where the file ends.

        Raises:
            OSError: there is no such file.
        """
        if is_url(path):
            return cast(bytes, _remote(path, lambda fs, key: fs.cat_file(key, start=offset, end=offset + size)))
        handle = self._handles.get(path)
        if handle is None:
            opened = os.open(path, os.O_RDONLY)
            if len(self._handles) >= _OPEN_FILES:
                try:
                    return _pread(opened, size, offset)
                finally:
                    os.close(opened)
            handle = self._handles.setdefault(path, opened)
            if handle != opened:  # another thread was faster
                os.close(opened)
        return _pread(handle, size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {"_handles": {}}  # another process opens its own

    def __del__(self) -> None:
        for handle in self._handles.values():
            os.close(handle)


def _pread(handle: int, size: int, offset: int) -> bytes:
    """One call reads 2 GiB at most."""
    content = os.pread(handle, size, offset)
    while len(content) < size and (more := os.pread(handle, size - len(content), offset + len(content))):
        content += more
    return content


def _remote(path: str, use: Callable[[Any, str], Result]) -> Result:
    """Calls `use(file system, key)`; a connection that fails is tried again, since it says nothing of the data.

    Raises:
        OSError: there is no such file, or it must not be read.
        UserError: the store cannot be reached.
    """
    for pause in (*_PAUSES, None):
        try:
            from fsspec.core import url_to_fs

            fs, key = url_to_fs(path)
            return use(fs, key)
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except (ImportError, ValueError) as error:  # a protocol that is not installed, or that nobody knows
            raise UserError(f"cannot open {path}: {error}") from error
        except Exception as error:  # every store has errors of its own
            if pause is None:
                raise UserError(f"cannot read {path}: {error} (tried {len(_PAUSES) + 1} times)") from error
            time.sleep(pause)
    raise AssertionError("unreachable")
