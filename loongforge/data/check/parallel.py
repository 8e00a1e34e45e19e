"""Inspects many samples in worker processes, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from loongforge.data.check.inspector import Facts, Inspector

CHUNK = 64
"""Samples that a worker is given at a time."""

_AHEAD = 4  # chunks of each worker that are under way, so that results wait in memory for none but these

_inspector: Inspector | None = None


def inspect_all(inspector: Inspector, places: np.ndarray, workers: int, advance: Callable[[int], None]) -> list[Facts]:
    """Facts of all places, in their order.

    Args:
        inspector: Reads them; workers inherit it, so that an index of many samples is in memory once.
        places: int [n, 2], (source, index) of each.
        workers: Processes; 1: this one.
        advance: Called with the number of samples that have become known.
    """
    chunks = [places[first : first + CHUNK] for first in range(0, len(places), CHUNK)]
    parallel = workers > 1 and len(chunks) > 1 and "fork" in multiprocessing.get_all_start_methods()
    results = _forked(inspector, chunks, workers) if parallel else map(inspector.inspect, chunks)
    found = []
    for facts in results:
        advance(len(facts.tokens))
        found.append(facts)
    return found


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forked(inspector: Inspector, chunks: Sequence[np.ndarray], workers: int) -> Iterator[Facts]:
    context = multiprocessing.get_context("fork")
    waiting: deque[Future[Facts]] = deque()
    left = iter(chunks)
    with ProcessPoolExecutor(min(workers, len(chunks)), context, _begin, (inspector,)) as pool:
        try:
            for chunk in left:
                waiting.append(pool.submit(_inspect, chunk))
                if len(waiting) >= workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError("a process that read samples died (out of memory?); --workers 1 shows where") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(inspector: Inspector) -> None:
    """In a worker: Ctrl-C is for the parent, which then ends the workers."""
    global _inspector
    _inspector = inspector
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _inspect(places: np.ndarray) -> Facts:
    assert _inspector is not None
    return _inspector.inspect(places)
