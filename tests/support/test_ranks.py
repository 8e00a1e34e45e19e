"""The helper of the multi-process tests itself: a broken one would hide what it is there to show."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.ranks import RankPool, RanksFailed, run_ranks

RANK = int(os.environ.get("RANK", "0"))


def _place(text: str) -> tuple[str, int, str, str]:
    return text, RANK, os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]


def _process_id() -> int:
    return os.getpid()


def _raise_on_rank_1() -> None:
    print(f"rank {RANK} was here")
    if RANK == 1:
        raise ValueError("the planted fault")
    time.sleep(600)


def _hang_on_rank_1(folder: Path) -> int:
    if RANK == 1:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    return RANK


def _vanish() -> None:
    if RANK == 1:
        os._exit(7)


def _all_reduce(value: float) -> float:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([value * (RANK + 1)])
    dist.all_reduce(total)
    return total.item()


def _return_a_lambda() -> object:
    return lambda: None


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_every_rank_returns_its_value() -> None:
    assert run_ranks(_place, 3, "x", timeout=30) == [("x", rank, "3", "127.0.0.1") for rank in range(3)]


def test_traceback_and_logs_of_a_failed_rank_are_shown_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(RanksFailed, match=r"rank 1 failed(.|\n)*ValueError: the planted fault") as caught:
        run_ranks(_raise_on_rank_1, 2, timeout=60)
    assert time.monotonic() - began < 20
    for rank in range(2):
        assert f"--- log of rank {rank} ---\nrank {rank} was here" in str(caught.value)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_hanging_rank_is_killed_with_what_it_started_and_shows_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match="rank 1 did not finish") as caught:
        run_ranks(_hang_on_rank_1, 2, tmp_path, timeout=4)
    assert "rank 0 failed" not in str(caught.value)
    assert "in _hang_on_rank_1" in str(caught.value)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    deadline = time.monotonic() + 10  # a killed process that is not our child takes a moment to go
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, pids))


def test_rank_that_vanishes_is_named() -> None:
    with pytest.raises(RanksFailed, match="rank 1 failed: the process ended with exit code 7"):
        run_ranks(_vanish, 2, timeout=30)


def test_value_that_does_not_pickle_is_a_failure() -> None:
    with pytest.raises(RanksFailed, match="_return_a_lambda"):
        run_ranks(_return_a_lambda, 1, timeout=30)


def test_pool_keeps_its_processes_until_a_call_fails() -> None:
    with RankPool(2) as pool:
        first = pool.run(_process_id, timeout=30)
        assert pool.run(_process_id, timeout=30) == first
        with pytest.raises(RanksFailed):
            pool.run(_vanish, timeout=30)
        assert not set(pool.run(_process_id, timeout=30)) & set(first)


def test_calls_of_a_pool_make_process_groups_of_their_own() -> None:
    with RankPool(2) as pool:
        assert [pool.run(_all_reduce, value, timeout=60) for value in (1.0, 2.0)] == [[3.0, 3.0], [6.0, 6.0]]
