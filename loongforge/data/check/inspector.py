"""Reads samples as a run would, and takes down what is wrong with each."""

from __future__ import annotations

import functools
import hashlib
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.check.content import ContentRules, Finding, image_findings
from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.processed import ProcessedSample, documents
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import Location, RawSample
from loongforge.data.sources import Source


@dataclass(frozen=True)
class Found:
    """One thing that is wrong with one sample."""

    kind: str
    location: Location
    id: str
    reason: str


@dataclass
class Facts:
    """What reading n samples has told; a row for each, in the order asked for."""

    tokens: np.ndarray
    """int32 [n]; 0 where a run could not take the sample."""
    images: np.ndarray
    """int32 [n]"""
    names: np.ndarray
    """uint64 [n], hash of the id; 0: not known."""
    contents: np.ndarray
    """uint64 [n], hash of tokens and encoded images; 0: not known."""
    found: list[Found] = field(default_factory=list)

    @classmethod
    def empty(cls, n: int) -> Facts:
        """Of n samples that are still to be read."""
        return cls(np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros(n, np.uint64), np.zeros(n, np.uint64))

    @classmethod
    def joined(cls, parts: Sequence[Facts]) -> Facts:
        """One after another, without `found`."""
        return cls(
            tokens=np.concatenate([part.tokens for part in parts]),
            images=np.concatenate([part.images for part in parts]),
            names=np.concatenate([part.names for part in parts]),
            contents=np.concatenate([part.contents for part in parts]),
        )


class Inspector:
    """Inspects samples of several sources, one at a time, with the code that training reads them with."""

    def __init__(self, sources: Sequence[Source], processor: SampleProcessor):
        self._fetcher = SampleFetcher(sources, processor)
        self._processor = processor
        self._rules = ContentRules(processor)

    def inspect(self, places: np.ndarray) -> Facts:
        """Reads samples.

        Args:
            places: int [n, 2], (source, index) of each.
        """
        facts = Facts.empty(len(places))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's; what matters is found
            for row, (source, index) in enumerate(places.tolist()):
                self._inspect(row, source, index, facts)
        return facts

    def _inspect(self, row: int, source: int, index: int, facts: Facts) -> None:
        location = self._fetcher.sources[source].locate(index)
        name = location.key

        noted = set()

        def note(kind: str, reason: str) -> None:
            if kind not in noted:  # what is counted is samples
                noted.add(kind)
                facts.found.append(Found(kind, location, name, reason))

        def process(given: RawSample) -> None:
            nonlocal name
            name = given.id
            raw = replace(given, images=[functools.cache(read) for read in given.images])  # read once, looked at twice
            facts.names[row] = _hash(given.id if given.has_own_id else f"{location.shard}\0{location.key}")
            done = self._processor(raw)
            facts.tokens[row], facts.images[row] = len(done.ids), len(done.units)
            facts.contents[row] = _content_hash(raw, done)
            for kind, reason in self._findings(raw, done):
                note(kind, reason)

        try:
            self._fetcher.apply(source, index, process)
        except BadSampleError as error:
            note("dropped_too_long" if error.drop else error.problem, error.reason)
        except UserError as error:
            note("recipe", str(error))
        except Exception as error:  # a run would end with this traceback; a check goes on to the next sample
            last = traceback.extract_tb(error.__traceback__)[-1]
            note("crash", f"{type(error).__name__}: {error} (line {last.lineno} of {last.filename})")

    def _findings(self, raw: RawSample, done: ProcessedSample) -> Iterator[Finding]:
        for document, part in documents(raw, done):
            for kind, reason in self._rules.findings(document, part):
                yield kind, f"sample '{document.id}' in it: {reason}" if raw.documents else reason
        for number, read in enumerate(raw.images):
            yield from image_findings(read(), number)


def _hash(*parts: str | bytes) -> np.uint64:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return np.uint64(max(1, int.from_bytes(digest.digest(), "little")))


def _content_hash(raw: RawSample, done: ProcessedSample) -> np.uint64:
    return _hash(done.ids.tobytes(), *(read() for read in raw.images))
