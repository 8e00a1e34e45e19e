"""What a plan needs to know of every sample, remembered in a few bytes."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import SampleMeta
from loongforge.data.sources import Source

__all__ = ["MetaColumns", "MetadataTable", "SampleMeta"]

_BAD = -1


class MetaColumns:
    """Metadata of numbered samples: 20 bytes each and 8 for every image. Safe to use from several threads."""

    def __init__(self, size: int):
        """Room for `size` samples, of which nothing is known yet; memory is taken as they come."""
        self._text = np.zeros(size, np.int32)  # 0: not known, _BAD: see _problems
        self._labels = np.zeros(size, np.int32)
        self._counts = np.zeros(size, np.int32)
        self._firsts = np.zeros(size, np.int64)  # into _sizes
        self._sizes = np.zeros((256, 2), np.int32)
        self._used = 0
        self._problems: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._text)

    def get(self, index: int) -> SampleMeta | None:
        """What is known of a sample; None: nothing."""
        with self._lock:
            text = int(self._text[index])
            if text == _BAD:
                return SampleMeta(0, 0, (), self._problems[index])
            first, count = int(self._firsts[index]), int(self._counts[index])
            sizes = tuple((width, height) for width, height in self._sizes[first : first + count].tolist())
            return SampleMeta(text, int(self._labels[index]), sizes) if text else None

    def put(self, index: int, meta: SampleMeta) -> None:
        """Remembers a sample; what is known already stays."""
        with self._lock:
            if self._text[index]:
                return
            if meta.problem is not None:
                self._problems[index] = meta.problem
                self._text[index] = _BAD
                return
            self._labels[index] = meta.label_tokens
            self._firsts[index], self._counts[index] = self._used, len(meta.image_sizes)
            self._append(meta.image_sizes)
            self._text[index] = meta.text_tokens

    def _append(self, sizes: Sequence[tuple[int, int]]) -> None:
        end = self._used + len(sizes)
        if end > len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.zeros((max(end, len(self._sizes)), 2), np.int32)])
        if sizes:
            self._sizes[self._used : end] = sizes
        self._used = end


class MetadataTable:
    """Metadata of all samples of several sources, found on first use. Safe to use from several threads."""

    def __init__(self, sources: Sequence[Source], processor: SampleProcessor, *, decode: bool = False):
        """Args:

        sources: as opened by `open_sources`.
        processor: the run's.
        decode: decode every image as the run would, so that a sample without `problem` is certainly good. Otherwise
            headers are read, and an image that is broken behind its header is found when it is fetched.
        """
        self._fetcher = SampleFetcher(sources, processor)
        self._decode = decode
        self._columns = [MetaColumns(len(source)) for source in sources]

    def get(self, source: int, index: int) -> SampleMeta:
        """Metadata of a sample; `problem` is set exactly where `SampleFetcher.fetch` would raise `BadSampleError`.

        Raises:
            UserError: no sample can be processed, as the chat template does not fit.
        """
        known = self._columns[source].get(index)
        if known is not None:
            return known
        try:
            meta = self._fetcher.measure(source, index, decode=self._decode)
        except BadSampleError as error:
            meta = SampleMeta(0, 0, (), error.reason)
        self._columns[source].put(index, meta)
        return meta
