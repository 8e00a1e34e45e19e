"""The launcher: ranks start together, fail together, stop together, and never outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from loongforge.training.launcher import default_threads, reserved_port
from tests.support.notes import without_notes

_SUPPORT = Path(__file__).parents[1] / "support"
_TIMEOUT_S = 60


def _start(entry: str, nproc: int, logs: Path, **arguments: object) -> subprocess.Popen[str]:
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environ |= {"PYTHONPATH": str(_SUPPORT), "OMP_NUM_THREADS": "1"}
    texts = [f"{name}={value}" for name, value in arguments.items()]
    command = [sys.executable, str(_SUPPORT / "run_launcher.py"), entry, str(nproc), str(logs), *texts]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    finally:
        process.kill()
    return process.returncode, output, without_notes(errors)


def _wait_for(*files: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, f"{files} did not appear"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_rank_has_a_log_and_rank_0_the_terminal(tmp_path: Path) -> None:
    code, output, errors = _finish(_start("succeed", 3, tmp_path))
    assert code == 0, errors
    assert output == "hello from rank 0 of 3, threads 1\n"
    logs = [without_notes((tmp_path / f"rank_{rank}.log").read_text()) for rank in range(3)]
    assert logs == [f"hello from rank {rank} of 3, threads 1\n" for rank in range(3)]


def test_first_traceback_is_shown_first_and_the_others_do_not_linger(tmp_path: Path) -> None:
    began = time.monotonic()
    code, _, errors = _finish(_start("rank_1_dies", 3, tmp_path))
    assert code == 1
    assert time.monotonic() - began < _TIMEOUT_S  # rank 2 would sleep for minutes
    assert errors.lstrip().startswith("rank 1 failed first")
    assert "RuntimeError: the planted fault" in errors
    assert "ConnectionError" not in errors  # rank 0's consequence stays in its log
    assert "ConnectionError" in (tmp_path / "rank_0.log").read_text()


def test_a_killed_rank_comes_before_those_that_noticed(tmp_path: Path) -> None:
    code, _, errors = _finish(_start("rank_1_is_killed", 2, tmp_path))
    assert code == 1
    assert "rank 1 failed first (killed by SIGKILL" in errors
    assert "about to go" in errors


def test_a_users_mistake_is_one_message(tmp_path: Path) -> None:
    code, _, errors = _finish(_start("user_error", 2, tmp_path))
    assert (code, errors) == (2, "data.train=nowhere: no such file\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_ranks_save(tmp_path: Path, number: int) -> None:
    launcher = _start("save_on_sigterm", 2, tmp_path / "logs", folder=tmp_path)
    _wait_for(tmp_path / "ready_0", tmp_path / "ready_1")
    launcher.send_signal(number)
    code, _, errors = _finish(launcher)
    assert code == 130, errors
    assert (tmp_path / "saved_0").exists()
    assert (tmp_path / "saved_1").exists()


def test_a_second_signal_kills(tmp_path: Path) -> None:
    launcher = _start("ignore_sigterm", 2, tmp_path / "logs", folder=tmp_path)
    _wait_for(tmp_path / "ready_0", tmp_path / "ready_1")
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    assert _finish(launcher)[0] == 130


def test_ranks_end_with_a_killed_launcher(tmp_path: Path) -> None:
    launcher = _start("ignore_sigterm", 2, tmp_path / "logs", folder=tmp_path)
    ready = [tmp_path / f"ready_{rank}" for rank in range(2)]
    _wait_for(*ready)
    time.sleep(0.1)
    pids = [int(file.read_text()) for file in ready]
    launcher.kill()
    deadline = time.monotonic() + 10
    while any(map(_alive, pids)):
        assert time.monotonic() < deadline, f"{pids} outlive their launcher"
        time.sleep(0.05)
    _finish(launcher)


def test_torch_meets_on_the_reserved_port(tmp_path: Path) -> None:
    code, _, errors = _finish(_start("meet", 2, tmp_path))
    assert code == 0, errors


def test_reserved_ports_differ() -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(reserved_port()) for _ in range(200)]
    assert len(set(ports)) == 200


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loongforge.training.launcher.available_cores", lambda: 4)
    assert [default_threads(nproc) for nproc in (1, 2, 3, 4, 8)] == [2, 2, 1, 1, 1]
