"""Inspects many samples of several sets in worker processes, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np

from loongforge.data.check.inspector import Facts, Inspector
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources import Source
from loongforge.data.workers import worker_map

CHUNK = 64
"""Samples that a worker is given at a time."""

Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given the number of samples to read, gives a function to be called with the number of those just read."""

_inspectors: Sequence[Inspector] = ()


def inspect_all(
    sets: Sequence[Sequence[Source]],
    processor: SampleProcessor,
    places: Sequence[np.ndarray],
    *,
    workers: int,
    watch: Watch,
) -> Iterator[tuple[int, Facts]]:
    """(number of a set, facts of some of its places), in order.

    Args:
        sets: Sources of each set.
        processor: The run's.
        places: int [n, 2] of each set, (source, index).
        workers: Processes; 1: this one.
        watch: Shows how far it is.

    Raises:
        RuntimeError: A worker died.
    """
    tasks = [
        (number, part[first : first + CHUNK])
        for number, part in enumerate(places)
        for first in range(0, len(part), CHUNK)
    ]
    workers = min(workers, max(1, len(tasks)))
    with worker_map(workers, _begin, sets, processor) as run, watch(sum(map(len, places))) as advance:
        for number, facts in run(_inspect, tasks):
            advance(len(facts.tokens))
            yield number, facts


def _begin(sets: Sequence[Sequence[Source]], processor: SampleProcessor) -> None:
    global _inspectors
    _inspectors = [Inspector(sources, processor) for sources in sets]


def _inspect(task: tuple[int, np.ndarray]) -> tuple[int, Facts]:
    number, places = task
    return number, _inspectors[number].inspect(places)
