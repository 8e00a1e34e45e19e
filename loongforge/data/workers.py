"""Worker processes that read data."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from loongforge.data.sources.files import is_url

_AHEAD = 4  # tasks of each worker that are under way, so that results wait in memory for none but these

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Like `map`."""


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_map(workers: int, files: Sequence[str], start: Callable[..., None], *arguments: Any) -> Iterator[Run]:
    """A `map` over processes that gives results in order; over none but this one for a single worker.

    Args:
        workers: processes.
        files: what they read.
        start: called first in each process, with `arguments`.
    """
    if workers <= 1:
        start(*arguments)
        yield map
        return
    # clients of remote stores do not survive a fork; without them it spares every worker its imports
    method = "fork" if sys.platform == "linux" and not any(is_url(file) for file in files) else "spawn"
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context(method), _begin, (start, *arguments))

    def run(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        for task in tasks:
            waiting.append(executor.submit(function, task))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        executor.submit(_nothing).result()  # forks now, before a progress bar starts its thread
        yield run
    except BrokenProcessPool as error:
        raise RuntimeError("a process that read samples died (out of memory?); --workers 1 shows where") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[..., None], *arguments: Any) -> None:
    """In a worker: Ctrl-C is for the parent, which then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start(*arguments)


def _nothing() -> None:
    pass
