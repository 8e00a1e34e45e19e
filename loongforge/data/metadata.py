"""What a plan needs to know of every sample: read from index files, or found on first use and remembered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.meta_columns import MetaColumns
from loongforge.data.meta_index import read_index
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import SampleMeta
from loongforge.data.sources import Source
from loongforge.data.sources.base import find_part

__all__ = ["MetadataTable", "SampleMeta"]

_log = logging.getLogger(__name__)


class MetadataTable:
    """Metadata of all samples of several sources. Safe to use from several threads."""

    def __init__(
        self,
        sources: Sequence[Source],
        processor: SampleProcessor,
        *,
        decode: bool = False,
        index_dir: str | None = None,
        fetcher: SampleFetcher | None = None,
    ):
        """Args:

        sources: as opened by `open_sources`.
        processor: the run's.
        decode: decode every image as the run would, so that a sample without `problem` is certainly good. Otherwise
            headers are read, and an image that is broken behind its header is found when it is fetched.
        index_dir: `data.index_dir`. An index that does not fit data, tokenizer or recipe is told in the log once for
            each reason, and not used.
        fetcher: of the same sources, which gets to know the tokens of what is measured; None: one of its own.
        """
        self._fetcher = fetcher if fetcher is not None else SampleFetcher(sources, processor)
        self._decode = decode
        self._index_dir = index_dir
        self._columns: list[list[MetaColumns | None]] = [[None] * len(source.parts) for source in sources]
        self._told: set[tuple[int, str]] = set()
        self._lock = threading.Lock()

    def get(self, source: int, index: int) -> SampleMeta:
        """Metadata of a sample; `problem` is set exactly where `SampleFetcher.fetch` would raise `BadSampleError`.

        Raises:
            UserError: no sample can be processed, as the chat template does not fit.
        """
        known = self.known(source, index)
        if known is None:
            known = measure(self._fetcher, source, index, decode=self._decode)
            self.put(source, index, known)
        return known

    def known(self, source: int, index: int) -> SampleMeta | None:
        """The same, if it has been found before; None: not yet."""
        columns, place = self._place(source, index)
        return columns.get(place)

    def put(self, source: int, index: int, meta: SampleMeta) -> None:
        """Remembers what was found elsewhere."""
        columns, place = self._place(source, index)
        columns.put(place, meta)

    def _place(self, source: int, index: int) -> tuple[MetaColumns, int]:
        part, place = find_part(self._fetcher.sources[source].parts, index)
        return self._columns[source][part] or self._open(source, part), place

    def _open(self, source: int, number: int) -> MetaColumns:
        with self._lock:
            columns = self._columns[source][number]
            if columns is None:
                opened = self._fetcher.sources[source]
                columns, why = read_index(opened, number, self._fetcher.processor, self._decode, self._index_dir)
                if why is not None and (source, why) not in self._told:
                    self._told.add((source, why))
                    _log.warning("%s: %s; samples are measured as they come", opened.parts[number].path, why)
                if columns is None:
                    columns = MetaColumns(opened.parts[number].stop - opened.parts[number].start)
                self._columns[source][number] = columns
            return columns


def measure(fetcher: SampleFetcher, source: int, index: int, *, decode: bool) -> SampleMeta:
    """Metadata of one sample, found now; a bad one has a `problem`."""
    try:
        return fetcher.measure(source, index, decode=decode)
    except BadSampleError as error:
        return SampleMeta(0, 0, (), error.reason)
