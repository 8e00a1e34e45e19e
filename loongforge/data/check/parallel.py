"""Inspects many samples of several sets in worker processes, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager

import numpy as np

from loongforge.data.check.inspector import Facts, Inspector
from loongforge.data.workers import worker_map

CHUNK = 64
"""Samples that a worker is given at a time."""

Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Given the number of samples to read, gives a function to be called with the number of those just read."""

_inspectors: Sequence[Inspector] = ()


def inspect_all(
    inspectors: Sequence[Inspector], places: Sequence[np.ndarray], *, workers: int, watch: Watch
) -> Iterator[tuple[int, Facts]]:
    """(number of a set, facts of some of its places), in order.

    Args:
        inspectors: Of each set.
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
    files = [file for inspector in inspectors for file in inspector.files]
    with worker_map(workers, files, _begin, inspectors) as run, watch(sum(map(len, places))) as advance:
        try:
            for number, facts in run(_inspect, tasks):
                advance(len(facts.tokens))
                yield number, facts
        except BrokenProcessPool as error:
            raise RuntimeError("a process that read samples died (out of memory?); --workers 1 shows where") from error


def _begin(inspectors: Sequence[Inspector]) -> None:
    global _inspectors
    _inspectors = inspectors


def _inspect(task: tuple[int, np.ndarray]) -> tuple[int, Facts]:
    number, places = task
    return number, _inspectors[number].inspect(places)
