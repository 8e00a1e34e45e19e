"""Worker processes that read data."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any

_AHEAD = 4  # tasks of each worker that are under way, so that results wait in memory for none but these

Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""Like `map`."""


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_map(workers: int, start: Callable[..., None], *arguments: Any) -> Iterator[Run]:
    """A `map` over processes that gives results in order; over none but this one for a single worker.

    Args:
        workers: processes.
        start: called first in each process, with `arguments`, which are pickled.

    Raises:
        RuntimeError: a process died.
    """
    if workers <= 1:
        start(*arguments)
        yield map
        return
    before = multiprocessing.active_children()
    executor = ProcessPoolExecutor(workers, _context(start), _begin, (start, *arguments))

    def run(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        for task in tasks:
            waiting.append(executor.submit(function, task))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield run
    except BaseException as error:  # Ctrl-C too: nobody waits for what is under way
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()).difference(before):
            process.kill()
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError("a process that read samples died (out of memory?); --workers 1 shows where") from error
        raise
    executor.shutdown()


def _context(start: Callable[..., None]) -> BaseContext:
    """Not `fork`: a process with threads (torch's, a data format's) would pass on locks that nobody opens any more.

    Workers are forks of a server without threads, which has imported what they need, where the system has such.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([start.__module__])
    return context


def _begin(start: Callable[..., None], *arguments: Any) -> None:
    """In a worker: Ctrl-C is for the parent, which then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    start(*arguments)
