"""Finds out what samples hold, in parallel processes, images decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loongforge.data.fetch import SampleFetcher
from loongforge.data.metadata import MetadataTable, measure
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import SampleMeta
from loongforge.data.sources import Source
from loongforge.data.workers import Run, worker_map

CHUNK = 64
"""Samples that a process measures at a time."""

Place = tuple[int, int]
"""(source, index)"""


class Measuring:
    """Metadata of samples: from index files made with `--decode` where they fit, else measured."""

    def __init__(self, table: MetadataTable, run: Run):
        """Args:

        table: decodes; takes up what is measured.
        run: of worker processes.
        """
        self._table, self._run = table, run

    def of(self, places: Sequence[Place]) -> Iterator[SampleMeta]:
        """Metadata in the order of `places`."""
        new = list(dict.fromkeys(place for place in places if self._table.known(*place) is None))
        chunks = [new[first : first + CHUNK] for first in range(0, len(new), CHUNK)]
        found = (meta for metas in self._run(_measure, chunks) for meta in metas)
        coming = iter(new)
        for place in places:
            meta = self._table.known(*place)
            while meta is None:
                self._table.put(*next(coming), next(found))
                meta = self._table.known(*place)
            yield meta


@contextmanager
def measuring(
    sources: Sequence[Source], processor: SampleProcessor, *, index_dir: str | None, workers: int
) -> Iterator[Measuring]:
    """Starts worker processes."""
    table = MetadataTable(sources, processor, decode=True, index_dir=index_dir)
    with worker_map(workers, _start, sources, processor) as run:
        yield Measuring(table, run)


_fetcher: SampleFetcher | None = None  # of a worker process


def _start(sources: Sequence[Source], processor: SampleProcessor) -> None:
    global _fetcher
    _fetcher = SampleFetcher(sources, processor)


def _measure(chunk: Sequence[Place]) -> list[SampleMeta]:
    assert _fetcher is not None
    return [measure(_fetcher, source, index, decode=True) for source, index in chunk]
