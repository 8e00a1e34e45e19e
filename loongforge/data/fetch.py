"""Sample (source, index) -> processed sample, remembered while there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample
from loongforge.data.processed import Encoded, ProcessedSample
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import Location, RawSample, SampleError, SampleMeta
from loongforge.data.sources import Source

Result = TypeVar("Result")

CACHE_BYTES = 128 << 20
"""What a fetcher remembers at most. Processing anew in every epoch can cost more than a training step does."""


_MEASURED_BYTES = 32 << 20


class BadSampleError(SampleError):
    """A `SampleError` that knows its sample."""

    def __init__(
        self, location: Location, sample_id: str, reason: str, *, problem: str = "invalid_sample", drop: bool = False
    ):
        super().__init__(reason, problem=problem, drop=drop)
        self.location = location
        self.sample_id = sample_id
        self.reason = reason

    def as_user_error(self) -> UserError:
        """What the user reads when this sample stops the run."""
        name = f" (id '{self.sample_id}')" if self.sample_id != self.location.key else ""
        return UserError(
            f"bad sample: {self.location}{name}: {self.reason}. Mend or remove it, or set data.bad_sample=skip to "
            "replace bad samples and note them in quarantine.jsonl"
        )

    def as_record(self, step: int, replaced_by: str) -> BadSample:
        """The entry for quarantine.jsonl."""
        place = self.location
        return BadSample(
            place.source, place.shard, place.key, self.sample_id, self.reason, step, replaced_by, dropped=self.drop
        )


class _Measured:
    """Tokens of the samples that were measured last, so that they need not be found again."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Encoded] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, place: tuple[int, int], encoded: Encoded) -> None:
        """The oldest make room."""
        with self._lock:
            if place not in self._found:
                self._found[place] = encoded
                self._bytes += encoded.nbytes
            while self._bytes > _MEASURED_BYTES:
                self._bytes -= self._found.pop(next(iter(self._found))).nbytes

    def take(self, place: tuple[int, int]) -> Encoded | None:
        """None where they are not known."""
        with self._lock:
            encoded = self._found.pop(place, None)
            self._bytes -= encoded.nbytes if encoded is not None else 0
            return encoded


class SampleFetcher:
    """Loads and processes samples of several sources. Safe to use from several threads."""

    def __init__(self, sources: Sequence[Source], processor: SampleProcessor):
        self.sources = list(sources)
        self.processor = processor
        self._cache: dict[tuple[int, int, tuple[int, ...] | None], ProcessedSample] = {}
        self._room = CACHE_BYTES
        self._measured = _Measured()

    def fetch(self, source: int, index: int, only: tuple[int, ...] | None = None) -> ProcessedSample:
        """One processed sample, of whose images `only` those numbers are decoded (None: all).

        Raises:
            BadSampleError: it cannot be learned from.
            UserError: no sample can.
        """
        known = self._cache.get((source, index, only))
        if known is not None:
            return known
        encoded = self._measured.take((source, index))
        sample = self.apply(source, index, partial(self.processor, only=only, encoded=encoded))
        size = sample.nbytes
        if size <= self._room:  # no eviction: in a shuffled epoch every sample is as likely as any other to come next
            self._room -= size
            self._cache[source, index, only] = sample
        return sample

    def fetch_good(self, source: int, index: int, only: tuple[int, ...] | None = None) -> ProcessedSample:
        """`fetch` for a sample that is too far on to be replaced.

        Raises:
            UserError: it cannot be learned from.
        """
        try:
            return self.fetch(source, index, only)
        except BadSampleError as error:
            raise error.as_user_error() from error

    def measure(self, source: int, index: int, *, decode: bool = False) -> SampleMeta:
        """What a plan needs to know of a sample; see `SampleProcessor.measure`.

        Raises:
            BadSampleError, UserError: as `fetch`, but what only decoding an image shows, unless `decode`.
        """

        def process(raw: RawSample) -> SampleMeta:
            encoded = self.processor.encode(raw)
            meta = self.processor.measure(raw, decode=decode, encoded=encoded)
            self._measured.put((source, index), encoded)  # what is measured is often fetched next
            return meta

        return self.apply(source, index, process)

    def apply(self, source: int, index: int, process: Callable[[RawSample], Result]) -> Result:
        """What `process` makes of a sample as its source has it; a SampleError gets to know its sample."""
        location = self.sources[source].locate(index)
        name = location.key
        try:
            raw = self.sources[source].load(index, self.processor.max_sample_bytes)
            name = raw.id
            return process(raw)
        except SampleError as error:
            raise BadSampleError(location, name, str(error), problem=error.problem, drop=error.drop) from error
