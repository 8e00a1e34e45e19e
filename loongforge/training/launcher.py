"""Starts the processes of a run on this machine, and ends them together."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from loongforge.config.errors import UserError
from loongforge.training.job import Job
from loongforge.training.worker import INTERRUPTED

GRACE_S = 2.0
"""What the other ranks get to finish by themselves after one has failed."""
_DEATH_SEEN_LATE_S = 0.5  # a killed rank's peers notice its closed sockets before we are told of its end
_LOG_TAIL_LINES = 20
_SHOW_CURSOR = "\x1b[?25h"


def launch(job: Job, nproc: int, log_dir: Path, *, threads: int | None = None) -> int:
    """Runs a job in `nproc` processes and waits for the end of all.

    Rank 0 has the terminal; every rank has `log_dir/rank_N.log`. The first rank to fail ends the job: its traceback is
    printed, the others are killed after `GRACE_S`. SIGTERM, SIGHUP and Ctrl-C are passed on to the ranks, which save
    and leave; a second one kills them. Ranks never outlive this process.

    Args:
        job: What each rank does.
        nproc: Number of processes.
        log_dir: Folder for logs; made where missing.
        threads: OpenMP threads of each; None: 2, or fewer where the cores are fewer.

    Returns:
        0; 1 where a rank failed; 130 when interrupted.

    Raises:
        UserError: that a rank raised.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    for note in log_dir.glob("rank_*.error"):
        note.unlink()
    with tempfile.TemporaryDirectory(prefix="loongforge-") as folder, reserved_port() as port:
        job_file = Path(folder) / "job.json"
        job.save(job_file)
        ranks = _Ranks(log_dir)
        with _signals_to(ranks):
            ranks.start(nproc, job_file, _environment(nproc, port, threads))
            ranks.wait()
    return ranks.outcome()


def default_threads(nproc: int) -> int:
    """OpenMP threads per process: more than 2 gain little on small models, and sharing cores costs much."""
    return max(1, min(2, available_cores() // nproc))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def reserved_port() -> Iterator[int]:
    """A free TCP port that nobody else is given while the context lasts.

    The socket stays bound but never listens: the system hands the port to nobody, while rank 0, which binds with
    SO_REUSEADDR as well, can listen on it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def _environment(nproc: int, port: int, threads: int | None) -> dict[str, str]:
    wanted = {"OMP_NUM_THREADS": str(threads or default_threads(nproc))}
    if nproc > 1:  # spinning threads of one process take the cores from the others
        wanted |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    kept = {name: os.environ[name] for name in wanted if name in os.environ and not (threads and "NUM" in name)}
    place = {"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1"}
    return {**os.environ, **wanted, **kept, **place, "MASTER_PORT": str(port), "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class _Failure:
    rank: int
    code: int
    time: float
    text: str
    user_error: bool = False


class _Ranks:
    """The processes of one job."""

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ended: queue.SimpleQueue[tuple[int, int, float]] = queue.SimpleQueue()
        self._failures: list[_Failure] = []
        self._signals = 0
        self._killed = False

    def start(self, nproc: int, job_file: Path, environ: dict[str, str]) -> None:
        """Starts all ranks. They hold the read end of a pipe that closes when this process ends, however it ends."""
        watch, self._lifeline = os.pipe()
        command = [sys.executable, "-m", "loongforge.training.worker", str(job_file), str(self._log_dir), str(watch)]
        for rank in range(nproc):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (self._log_dir / f"rank_{rank}.log").open("ab") as log:
                output: Any = {} if rank == 0 else {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
                # A session of its own: Ctrl-C reaches the ranks only through us.
                process = subprocess.Popen(
                    command, env={**environ, **place}, pass_fds=[watch], start_new_session=True, **output
                )
            self._processes.append(process)
            threading.Thread(target=self._report_end, args=(rank, process), daemon=True).start()
        os.close(watch)
        if self._signals:  # one came while we were starting
            self._send(signal.SIGTERM)

    def _report_end(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self._ended.put((rank, code, time.time()))

    def interrupt(self) -> None:
        """First call: asks the ranks to save and leave. Second: kills them."""
        self._signals += 1
        self._send(signal.SIGTERM if self._signals == 1 else signal.SIGKILL)

    def _send(self, number: int) -> None:
        self._killed = self._killed or number == signal.SIGKILL
        for process in self._processes:
            if process.poll() is None:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue

    def wait(self) -> None:
        """Returns when every rank has ended; kills the rest soon after the first failure."""
        running, deadline = len(self._processes), float("inf")
        while running:
            try:
                # Short waits, so that signal handlers get their turn.
                rank, code, when = self._ended.get(timeout=0.1)
            except queue.Empty:
                if time.monotonic() > deadline and not self._killed:
                    self._send(signal.SIGKILL)
                continue
            running -= 1
            if failure := self._failure(rank, code, when):
                self._failures.append(failure)
                deadline = min(deadline, time.monotonic() + GRACE_S)
        os.close(self._lifeline)

    def _failure(self, rank: int, code: int, when: float) -> _Failure | None:
        """Why a rank ended badly; None where it ended well, or by our signal."""
        note = self._log_dir / f"rank_{rank}.error"
        if note.exists():
            noted = json.loads(note.read_text(encoding="utf-8"))
            return _Failure(rank, code, noted["time"], noted["text"], noted["user_error"])
        by_us = self._killed or (self._signals > 0 and code == -signal.SIGTERM)
        if code in (0, INTERRUPTED) or by_us:
            return None
        lines = (self._log_dir / f"rank_{rank}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return _Failure(rank, code, when - _DEATH_SEEN_LATE_S, "\n".join(lines[-_LOG_TAIL_LINES:]))

    def outcome(self) -> int:
        """The job's exit code; shows the first failure."""
        if self._failures:
            first = min(self._failures, key=lambda failure: failure.time)
            if first.user_error:
                raise UserError(first.text)
            self._show(first)
            return 1
        return INTERRUPTED if self._signals or self._interrupted() else 0

    def _interrupted(self) -> bool:
        return any(process.returncode == INTERRUPTED for process in self._processes)

    def _show(self, first: _Failure) -> None:
        log = self._log_dir / f"rank_{first.rank}.log"
        if sys.stdout.isatty():
            print(_SHOW_CURSOR, end="")  # a live bar that was killed has hidden it
        print(f"\nrank {first.rank} failed first ({_how(first.code)}); its log: {log}", file=sys.stderr)
        print(first.text.rstrip(), file=sys.stderr)
        others = sorted({failure.rank for failure in self._failures} - {first.rank})
        if others:
            print(f"(failed after it: rank {', '.join(map(str, others))})", file=sys.stderr)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


@contextmanager
def _signals_to(ranks: _Ranks) -> Iterator[None]:
    """Passes SIGINT, SIGTERM and SIGHUP on to the ranks while the context lasts."""

    def handle(number: int, frame: FrameType | None) -> None:
        ranks.interrupt()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
