"""Sample (source, index) -> processed sample, remembered while there is room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample
from loongforge.data.processed import ProcessedSample
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import Location, RawSample, SampleError, SampleMeta
from loongforge.data.sources import Source

Result = TypeVar("Result")

CACHE_BYTES = 128 << 20
"""What a fetcher remembers at most. Processing anew in every epoch can cost more than a training step does."""


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


class SampleFetcher:
    """Loads and processes samples of several sources. Safe to use from several threads."""

    def __init__(self, sources: Sequence[Source], processor: SampleProcessor):
        self.sources = list(sources)
        self.processor = processor
        self._cache: dict[tuple[int, int, tuple[int, ...] | None], ProcessedSample] = {}
        self._room = CACHE_BYTES

    def fetch(self, source: int, index: int, only: tuple[int, ...] | None = None) -> ProcessedSample:
        """One processed sample, of whose images `only` those numbers are decoded (None: all).

        Raises:
            BadSampleError: it cannot be learned from.
            UserError: no sample can.
        """
        known = self._cache.get((source, index, only))
        if known is not None:
            return known
        sample = self.apply(source, index, partial(self.processor, only=only))
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
        return self.apply(source, index, partial(self.processor.measure, decode=decode))

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
