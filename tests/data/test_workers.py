"""Worker processes give results in order, are no forks of this process, and never outlive what they are for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from loongforge.data.workers import Run, worker_map

_LOCK = threading.Lock()
_start = 0


def _begin(start: int) -> None:
    global _start
    _start = start


def _add(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0)
    return _start + number


def _take_lock(_: int) -> bool:
    return _LOCK.acquire(timeout=2) and (_LOCK.release() or True)


def _die(_: int) -> None:
    os._exit(3)


def _sleep(_: int) -> None:
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers: int) -> None:
    with worker_map(workers, _begin, 1000) as run:
        assert list(run(_add, range(50))) == list(range(1000, 1050))
        assert list(run(_add, [])) == []


def test_a_lock_that_a_thread_holds_is_not_inherited() -> None:
    with _LOCK, worker_map(2, _begin, 0) as run:
        assert all(run(_take_lock, range(4)))


def test_a_worker_that_dies_is_said() -> None:
    with pytest.raises(RuntimeError, match="a process that read samples died"), worker_map(2, _begin, 0) as run:
        list(run(_die, range(4)))


def _interrupted_after_a_start(run: Run) -> None:
    def interrupt(*_: object) -> None:
        raise TimeoutError

    assert list(run(_add, [1])) == [1]
    before = signal.signal(signal.SIGUSR1, interrupt)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        next(run(_sleep, range(100)))
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_nobody_waits_for_workers_after_an_error() -> None:
    before, began = multiprocessing.active_children(), time.monotonic()
    with pytest.raises(TimeoutError), worker_map(2, _begin, 0) as run:
        _interrupted_after_a_start(run)
    assert time.monotonic() - began < 60
    while set(multiprocessing.active_children()).difference(before):
        assert time.monotonic() - began < 60
        time.sleep(0.05)
