"""The whole check: opens, inspects in parallel, compares ids, and sums up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from loongforge.config.schema import SourceConfig
from loongforge.data.check.inspector import Facts, Found
from loongforge.data.check.kinds import ERRORS, WARNINGS
from loongforge.data.check.opening import Opened, open_whole_or_parts
from loongforge.data.check.parallel import Watch, inspect_all
from loongforge.data.eval_loader import spread
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import Location, SampleError
from loongforge.data.sources import Source

Spec = str | Sequence[SourceConfig]


@dataclass
class Problem:
    """All samples with one kind of problem."""

    count: int = 0
    examples: list[tuple[str, Found]] = field(default_factory=list)
    """(set, sample) of the first few."""


@dataclass
class CheckedSet:
    """One set of samples, `train` or `eval`."""

    name: str
    opened: Opened
    places: np.ndarray
    """int64 [n, 2], (source, index) of the samples that are read; sources are numbered within the set."""
    facts: Facts = field(default_factory=lambda: Facts.empty(0))

    @property
    def total(self) -> int:
        """Samples that can be read."""
        return sum(len(source) for source in self.opened.sources)

    @property
    def lengths(self) -> np.ndarray:
        """int32, tokens of every good sample that was read."""
        return self.facts.tokens[self.facts.tokens > 0]

    @property
    def lengths_by_source(self) -> list[np.ndarray]:
        """The same, for each source."""
        source, tokens = self.places[:, 0], self.facts.tokens
        return [tokens[(source == s) & (tokens > 0)] for s in range(len(self.opened.sources))]


@dataclass
class Checked:
    """What a check has found."""

    sets: list[CheckedSet]
    problems: dict[str, Problem]

    def of(self, kinds: dict[str, str]) -> dict[str, Problem]:
        """Those of `ERRORS` or of `WARNINGS`, most frequent first."""
        chosen = {kind: problem for kind, problem in self.problems.items() if kind in kinds}
        return dict(sorted(chosen.items(), key=lambda item: -item[1].count))


def open_sets(
    specs: dict[str, Spec], *, samples: int | None = None, image_dir: str | None = None, index_dir: str | None = None
) -> list[CheckedSet]:
    """Opens what is to be read.

    Args:
        specs: {`train`: `data.train`, `eval`: `data.eval`}.
        samples: At most so many of each set, spread evenly over it; None: all.
        image_dir: `data.image_dir`.
        index_dir: `data.index_dir`.

    Raises:
        UserError: A path that does not exist, or a spec that makes no sense.
    """
    sets = []
    for name, spec in specs.items():
        opened = open_whole_or_parts(spec, f"data.{name}", image_dir, index_dir)
        sizes = [len(source) for source in opened.sources]
        chosen = np.arange(sum(sizes)) if samples is None else np.array(spread(sum(sizes), samples), np.int64)
        starts = np.cumsum([0, *sizes])
        source = np.searchsorted(starts, chosen, side="right") - 1
        sets.append(CheckedSet(name, opened, np.stack([source, chosen - starts[source]], axis=1)))
    return sets


def check(
    sets: list[CheckedSet],
    processor: SampleProcessor,
    *,
    workers: int,
    examples: int,
    watch: Watch = lambda _: nullcontext(lambda _: None),
) -> Checked:
    """Reads all chosen samples of the sets.

    Args:
        sets: From `open_sets`.
        processor: The run's.
        workers: Processes.
        examples: Samples that are named for each kind of problem, at most.
        watch: Shows how far it is.
    """
    checked = Checked(sets, {})
    ledger = _Ledger(checked.problems, examples)
    for one in sets:
        for source, file, why in one.opened.broken:
            ledger.add(one.name, Found("unreadable_source", Location(source, file, "-"), "", why))
    parts: list[list[Facts]] = [[Facts.empty(0)] for _ in sets]
    sources, places = [one.opened.sources for one in sets], [one.places for one in sets]
    for number, facts in inspect_all(sources, processor, places, workers=workers, watch=watch):
        for found in facts.found:
            ledger.add(sets[number].name, found)
        facts.found = []
        parts[number].append(facts)
    for one, facts_of_set in zip(sets, parts, strict=True):
        one.facts = Facts.joined(facts_of_set)
    _compare(sets, ledger)
    assert all(kind in ERRORS or kind in WARNINGS for kind in checked.problems)
    return checked


class _Ledger:
    def __init__(self, problems: dict[str, Problem], examples: int):
        self.problems, self.examples = problems, examples

    def add(self, set_name: str, found: Found) -> None:
        problem = self.problems.setdefault(found.kind, Problem())
        problem.count += 1
        if len(problem.examples) < self.examples:
            problem.examples.append((set_name, found))

    def add_pairs(self, one: CheckedSet, kind: str, pairs: np.ndarray, other: CheckedSet, text: str) -> None:
        """`pairs`: int [n, 2], rows of `one` and of `other`."""
        problem = self.problems.setdefault(kind, Problem()) if len(pairs) else Problem()
        problem.count += len(pairs)
        for row, first in pairs[: max(0, self.examples - len(problem.examples))].tolist():
            location, name = _describe(one.opened.sources, *one.places[row].tolist())
            where, _ = _describe(other.opened.sources, *other.places[first].tolist())
            problem.examples.append((one.name, Found(kind, location, name, f"{text} {where}")))


def _describe(sources: list[Source], source: int, index: int) -> tuple[Location, str]:
    location = sources[source].locate(index)
    try:
        return location, sources[source].load(index).id
    except SampleError:
        return location, location.key


def _compare(sets: list[CheckedSet], ledger: _Ledger) -> None:
    for one in sets:
        ledger.add_pairs(one, "duplicate_id", _repeated(one.facts.names), one, "its id is also that of")
    for train, held_out in _pairs(sets):
        same_id = _shared(held_out.facts.names, train.facts.names)
        ledger.add_pairs(held_out, "leaked_id", same_id, train, "its id is also that of training sample")
        same = _shared(held_out.facts.contents, train.facts.contents)
        ledger.add_pairs(held_out, "leaked_content", same, train, "its text and images are also those of")


def _pairs(sets: list[CheckedSet]) -> Iterator[tuple[CheckedSet, CheckedSet]]:
    for number, one in enumerate(sets):
        for other in sets[number + 1 :]:
            yield one, other


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """int [n, 2]: rows whose hash a row before has, and the first such row."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    rows = np.arange(len(hashes))
    firsts = first[inverse.reshape(-1)]
    chosen = (firsts != rows) & (hashes != 0)
    return np.stack([rows[chosen], firsts[chosen]], axis=1)


def _shared(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """int [n, 2]: rows whose hash is among `others`, and the first such row there."""
    known, first = np.unique(others, return_index=True)
    if not len(known):
        return np.zeros((0, 2), np.int64)
    at = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    chosen = (known[at] == hashes) & (hashes != 0)
    return np.stack([np.flatnonzero(chosen), first[at[chosen]]], axis=1)
