"""Multi-process tests: ranks that run one function after another, and never outlive their test.

    def _sum(values):                      # at module level, so that a rank can import it
        dist.init_process_group("gloo")    # the address is in the environment; the group is destroyed for you
        ...
        return total.item()                # anything that pickles

    def test_sum():
        assert run_ranks(_sum, 2, [1.0, 2.0]) == [3.0, 3.0]

Starting ranks takes a moment, so many calls share a pool: `with RankPool(4) as pool: pool.run(...)`, or the fixture
`rank_pool` (a pool per size and test file). On a CPU ranks are forks of a server that has imported torch and
megatron-core, which takes seconds; a device's driver would not survive that, so there they import for themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from loongforge.kernels.backend import select
from loongforge.training.launcher import reserved_port
from tests.support import rank_process

TIMEOUT_S = 120.0
_GRACE_S = 1.0  # what the others get to report after one has failed
_LOG_LINES = 60


class RanksFailed(Exception):  # noqa: N818 - reads as the event that it is
    """A rank raised, died or hung; the message has the traceback of every rank that failed, and every rank's log."""


def run_ranks(function: Callable[..., Any], nproc: int, *args: Any, timeout: float = TIMEOUT_S) -> list[Any]:
    """Runs `function(*args)` in `nproc` new processes; see `RankPool.run`."""
    with RankPool(nproc) as pool:
        return pool.run(function, *args, timeout=timeout)


class RankPool:
    """`nproc` processes with the environment of a world (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT ...).

    They start with the first call, and anew after a call that failed.
    """

    def __init__(self, nproc: int) -> None:
        self.nproc = nproc
        self._processes: list[tuple[BaseProcess, Connection]] = []
        self._calls = 0

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT_S) -> list[Any]:
        """Calls `function(*args)` on every rank.

        Args:
            function: A function that a rank can import.
            args: Anything that pickles.
            timeout: Seconds until all ranks are killed.

        Returns:
            What each rank returned.

        Raises:
            RanksFailed: a rank raised, died, or did not finish in time.
        """
        done = False
        try:
            with reserved_port() as port:
                if not self._processes:
                    self._start()
                folder = self._send(pickle.dumps((function, args, port)))
                values = self._collect(folder, time.monotonic() + timeout)
            done = True
            return values
        finally:
            if not done:  # also when pytest's own timeout or Ctrl-C came in between
                self.close()

    def close(self) -> None:
        """Kills all ranks, and what they started."""
        for process, _ in self._processes:
            _signal(process, signal.SIGKILL)
        for process, folders in self._processes:
            process.join()
            folders.close()
        if self._processes:
            self._folder.cleanup()
        self._processes = []

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        place = {"WORLD_SIZE": str(self.nproc), "LOCAL_WORLD_SIZE": str(self.nproc), "MASTER_ADDR": "127.0.0.1"}
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        environ = {**os.environ, **place, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        context = _context()
        for rank in range(self.nproc):
            self._log(rank).touch()
            theirs, ours = context.Pipe(duplex=False)
            mine = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=rank_process.main, args=(mine, self._log(rank), theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append((process, ours))

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"rank_{rank}.log"

    def _send(self, call: bytes) -> Path:
        folder = Path(self._folder.name) / f"call_{self._calls}"
        self._calls += 1
        folder.mkdir()
        (folder / "call.pkl").write_bytes(call)
        self._log_starts = [self._log(rank).stat().st_size for rank in range(self.nproc)]
        for _, folders in self._processes:
            folders.send(folder)
        return folder

    def _collect(self, folder: Path, deadline: float) -> list[Any]:
        results: dict[int, tuple[bool, Any]] = {}
        failed = False
        while len(results) < self.nproc and time.monotonic() < deadline:
            results |= self._results(folder)
            if not failed and any(not ok for ok, _ in results.values()):
                failed, deadline = True, min(deadline, time.monotonic() + _GRACE_S)
            time.sleep(0.01)
        if len(results) < self.nproc or failed:
            raise RanksFailed(self._report(results))
        return [results[rank][1] for rank in range(self.nproc)]

    def _results(self, folder: Path) -> dict[int, tuple[bool, Any]]:
        """What has come in; a process that ended without a word counts as failed."""
        found = {}
        for rank, (process, _) in enumerate(self._processes):
            ended, path = process.exitcode, folder / f"rank_{rank}.pkl"
            if path.exists():
                found[rank] = pickle.loads(path.read_bytes())
            elif ended is not None:
                found[rank] = (False, f"the process ended with exit code {ended}")
        return found

    def _report(self, results: dict[int, tuple[bool, Any]]) -> str:
        hanging = [rank for rank in range(self.nproc) if rank not in results]
        for rank in hanging:
            _signal(self._processes[rank][0], signal.SIGUSR1)  # its stacks go to its log
        time.sleep(0.3 if hanging else 0)
        parts = [f"rank {rank} failed: {value}" for rank, (ok, value) in results.items() if not ok]
        parts += [f"rank {rank} did not finish; its log ends with where it was" for rank in hanging]
        for rank in range(self.nproc):
            text = self._log(rank).read_bytes()[self._log_starts[rank] :].decode(errors="replace")
            parts.append(f"--- log of rank {rank} ---\n" + "\n".join(text.splitlines()[-_LOG_LINES:]))
        return "\n".join(parts)


def _context() -> Any:
    if select("auto").name != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    return context


def _signal(process: BaseProcess, number: int) -> None:
    """To the process and all that it started. SIGUSR1 goes to it alone: others may not know it."""
    assert process.pid is not None
    try:
        if number == signal.SIGKILL:
            process.kill()  # before it has a group of its own, or together with it
            os.killpg(process.pid, number)
        elif process.is_alive():
            os.kill(process.pid, number)
    except ProcessLookupError:
        pass
