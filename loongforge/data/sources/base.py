"""What every source offers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from loongforge.data.sample import Location, RawSample


class Source(Protocol):
    """A fixed, numbered collection of samples. Safe to read from several threads."""

    name: str
    """Path or pattern, as the recipe gives it."""

    def __len__(self) -> int:
        """Number of samples."""

    def load(self, index: int) -> RawSample:
        """Reads one sample; SampleError where it is malformed."""

    def locate(self, index: int) -> Location:
        """Says where a sample lies, without reading it."""


class FileReader:
    """Reads parts of files at given offsets; keeps files open, and shares no file position between threads."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer only where the file ends."""
        handle = self._handles.get(path)
        if handle is None:
            opened = os.open(path, os.O_RDONLY)
            handle = self._handles.setdefault(path, opened)
            if handle != opened:  # another thread was faster
                os.close(opened)
        return os.pread(handle, size, offset)

    def __del__(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
