"""Writes the index files of data sources, in parallel processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError
from loongforge.data.fetch import SampleFetcher
from loongforge.data.meta_columns import MetaColumns
from loongforge.data.meta_index import meta_path, read_index, write_index
from loongforge.data.metadata import measure
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import SampleMeta
from loongforge.data.sources import Source
from loongforge.data.sources.cache import check_writable
from loongforge.data.sources.files import stamp
from loongforge.data.sources.open import find_files
from loongforge.data.sources.spans import save_spans, spans_path
from loongforge.data.sources.tar_index import load_index
from loongforge.data.workers import Run, worker_map

CHUNK = 128
"""Samples that a process measures at a time."""

_ELSEWHERE = "say with data.index_dir=DIR where indexes go"

Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given the number of samples to measure, gives a function to be called with the number of those just measured."""


@dataclass
class Indexed:
    """What came of indexing one source."""

    name: str
    files: int
    written: int = 0
    """Index files that were missing or did not fit."""
    samples: int = 0
    text_tokens: int = 0
    label_tokens: int = 0
    images: int = 0
    bad: int = 0
    first_bad: str = ""
    """Where the first bad sample is, and why it is bad."""
    notes: list[str] = field(default_factory=list)
    """Indexes that were there and did not fit."""


def index_positions(pattern: str, key: str, *, index_dir: str | None, workers: int) -> int:
    """Writes where the samples of all files of a pattern lie (not for tables, which say so themselves).

    Returns:
        The number of files.

    Raises:
        UserError: nothing there or not readable, or the index cannot be written.
    """
    kind, files = find_files(pattern, key)
    for file in files:
        if kind != "tables" and spans_path(file, index_dir) is None:
            raise UserError(f"{file} is not on this machine; {_ELSEWHERE}")
    with worker_map(min(workers, len(files)), _nothing) as run:
        for _ in run(_index_file, [(kind, file, index_dir) for file in files]):
            pass
    return len(files)


def _index_file(task: tuple[str, str, str | None]) -> None:
    kind, file, index_dir = task
    if kind == "shards":
        load_index(file, index_dir)
    elif kind == "records":
        _writing(spans_path(file, index_dir), save_spans, file, index_dir)


class MetadataIndexer:
    """Writes what every sample of some sources holds, for each data file whose index is missing or does not fit."""

    def __init__(self, sources: Sequence[Source], processor: SampleProcessor, *, decode: bool, index_dir: str | None):
        """Args:

        sources: opened.
        processor: the run's.
        decode: decode all images.
        index_dir: `data.index_dir`.
        """
        self.sources = sources
        self.processor = processor
        self.decode = decode
        self.index_dir = index_dir

    def run(self, workers: int, watch: Watch, *, anew: bool = False) -> list[Indexed]:
        """Writes the indexes.

        Args:
            workers: processes.
            watch: shows how far it is.
            anew: write every index, whether it fits or not.

        Returns:
            What came of each source.

        Raises:
            UserError: an index cannot be written, or no sample can be processed.
        """
        reports = [Indexed(source.name, len(source.parts)) for source in self.sources]
        everything = [(number, part) for number, source in enumerate(self.sources) for part in range(len(source.parts))]
        jobs = everything if anew else self._missing(reports)
        paths = [self._path(number, part) for number, part in jobs]
        for path in {path.parent: path for path in paths}.values():
            _writing(path, check_writable, path)
        with (
            worker_map(workers if jobs else 1, _start, self.sources, self.processor, self.decode) as run,
            watch(sum(_size(self.sources[number], part) for number, part in jobs)) as advance,
        ):
            for number, part, columns in self._measured(jobs, run, advance):
                reports[number].written += 1
                _count(reports[number], self.sources[number], part, columns)
        return reports

    def _missing(self, reports: list[Indexed]) -> list[tuple[int, int]]:
        """(source, part) of every file without a fitting index; the others are counted."""
        jobs = []
        for number, source in enumerate(self.sources):
            for part in range(len(source.parts)):
                columns, why = read_index(source, part, self.processor, self.decode, self.index_dir)
                if why is not None:
                    reports[number].notes.append(f"{source.parts[part].path}: {why}")
                if columns is None:
                    jobs.append((number, part))
                else:
                    _count(reports[number], source, part, columns)
        return jobs

    def _measured(
        self, jobs: list[tuple[int, int]], run: Run, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, int, MetaColumns]]:
        """Chunks come back in order, so that a file's index is written as soon as its last chunk is there."""
        stamps = [stamp(self.sources[number].parts[part].path) for number, part in jobs]
        found = run(_measure, [chunk for number, part in jobs for chunk in _chunks(self.sources[number], number, part)])
        for (number, part), data in zip(jobs, stamps, strict=True):
            columns, place = MetaColumns(_size(self.sources[number], part)), 0
            while place < len(columns):
                metas = next(found)
                for offset, meta in enumerate(metas):
                    columns.put(place + offset, meta)
                place += len(metas)
                advance(len(metas))
            path = self._path(number, part)
            source = self.sources[number]
            _writing(path, write_index, source, part, self.processor, self.decode, path, columns, data)
            yield number, part, columns

    def _path(self, number: int, part: int) -> Path:
        file = self.sources[number].parts[part].path
        path = meta_path(file, self.index_dir)
        if path is None:
            raise UserError(f"{file} is not on this machine; {_ELSEWHERE}")
        return path


def _chunks(source: Source, number: int, part: int) -> list[tuple[int, int, int]]:
    start, stop = source.parts[part].start, source.parts[part].stop
    return [(number, first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]


def _size(source: Source, part: int) -> int:
    return source.parts[part].stop - source.parts[part].start


def _count(report: Indexed, source: Source, part: int, columns: MetaColumns) -> None:
    totals = columns.totals()
    report.samples += len(columns)
    report.text_tokens += totals.text_tokens
    report.label_tokens += totals.label_tokens
    report.images += totals.images
    report.bad += len(totals.problems)
    if totals.problems and not report.first_bad:
        place, why = min(totals.problems.items())
        report.first_bad = f"{source.locate(source.parts[part].start + place)}: {why}"


def _writing(path: object, write: Callable[..., None], *arguments: Any) -> None:
    try:
        write(*arguments)
    except OSError as error:
        raise UserError(f"cannot write the index {path}: {error.strerror or error}; {_ELSEWHERE}") from error


_work: tuple[SampleFetcher, bool] | None = None  # of a worker process


def _start(sources: Sequence[Source], processor: SampleProcessor, decode: bool) -> None:
    global _work
    _work = SampleFetcher(sources, processor), decode


def _nothing() -> None:
    pass


def _measure(chunk: tuple[int, int, int]) -> list[SampleMeta]:
    assert _work is not None
    source, start, stop = chunk
    return [measure(_work[0], source, index, decode=_work[1]) for index in range(start, stop)]
