"""Inspects many samples in worker processes, in order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loongforge.data.check.inspector import Facts, Inspector
from loongforge.data.workers import worker_map

CHUNK = 64
"""Samples that a worker is given at a time."""

_inspector: Inspector | None = None  # of a worker process


def inspect_all(inspector: Inspector, places: np.ndarray, workers: int, advance: Callable[[int], None]) -> list[Facts]:
    """Facts of all places, in their order.

    Args:
        inspector: Reads them; workers inherit it, so that an index of many samples is in memory once.
        places: int [n, 2], (source, index) of each.
        workers: Processes; 1: this one.
        advance: Called with the number of samples that have become known.
    """
    chunks = [places[first : first + CHUNK] for first in range(0, len(places), CHUNK)]
    found = []
    with worker_map(min(workers, len(chunks)), inspector.files, _begin, inspector) as run:
        for facts in run(_inspect, chunks):
            advance(len(facts.tokens))
            found.append(facts)
    return found


def _begin(inspector: Inspector) -> None:
    global _inspector
    _inspector = inspector


def _inspect(places: np.ndarray) -> Facts:
    assert _inspector is not None
    return _inspector.inspect(places)
