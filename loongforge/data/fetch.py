"""Sample (source, index) -> processed sample, remembered while there is room."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample
from loongforge.data.processing import ProcessedSample, SampleProcessor
from loongforge.data.sample import Location, RawSample, SampleError
from loongforge.data.sources import Source

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
        self._cache: dict[tuple[int, int], ProcessedSample] = {}
        self._room = CACHE_BYTES

    def fetch(self, source: int, index: int) -> ProcessedSample:
        """One processed sample.

        Raises:
            BadSampleError: it cannot be learned from.
            UserError: no sample can.
        """
        known = self._cache.get((source, index))
        if known is not None:
            return known
        sample = self.process(source, index, self.read(source, index))
        size = sample.nbytes
        if size <= self._room:  # no eviction: in a shuffled epoch every sample is as likely as any other to come next
            self._room -= size
            self._cache[source, index] = sample
        return sample

    def read(self, source: int, index: int) -> RawSample:
        """The first half of `fetch`: the sample as its source has it. BadSampleError where it is malformed."""
        try:
            return self.sources[source].load(index)
        except SampleError as error:
            raise self._bad(source, index, "", error) from error

    def process(self, source: int, index: int, raw: RawSample) -> ProcessedSample:
        """The second half of `fetch`, not remembered. BadSampleError where it cannot be learned from."""
        try:
            return self.processor(raw)
        except SampleError as error:
            raise self._bad(source, index, raw.id, error) from error

    def _bad(self, source: int, index: int, name: str, error: SampleError) -> BadSampleError:
        location = self.sources[source].locate(index)
        return BadSampleError(location, name or location.key, str(error), problem=error.problem, drop=error.drop)
