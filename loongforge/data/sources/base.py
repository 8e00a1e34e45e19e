"""What every source offers."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loongforge.data.sample import MAX_SAMPLE_BYTES, Location, RawSample


@dataclass(frozen=True)
class Part:
    """A data file of a source, and the samples `start:stop` that it holds."""

    path: str
    start: int
    stop: int


class Source(Protocol):
    """A fixed, numbered collection of samples. Safe to read from several threads, and to send to other processes."""

    name: str
    """Path or pattern, as the recipe gives it."""
    parts: Sequence[Part]
    """Its files, in order."""
    image_dir: str | None
    """Folder that image paths are relative to; None: each file's own."""

    def __len__(self) -> int:
        """Number of samples."""

    def load(self, index: int, max_bytes: int = MAX_SAMPLE_BYTES) -> RawSample:
        """Reads one sample.

        Raises:
            SampleError: it is malformed, or more than `max_bytes` would have to be read.
        """

    def locate(self, index: int) -> Location:
        """Says where a sample lies, without reading it."""


def number_through(paths: Sequence[str], sizes: Sequence[int]) -> list[Part]:
    """The parts of a source whose files hold so many samples each."""
    ends = list(itertools.accumulate(sizes))
    return [Part(path, end - size, end) for path, size, end in zip(paths, sizes, ends, strict=True)]


def find_part(parts: Sequence[Part], index: int) -> tuple[int, int]:
    """(number of the part that holds a sample, the sample's number in it)."""
    number = bisect.bisect_right(parts, index, key=lambda part: part.start) - 1
    return number, index - parts[number].start
