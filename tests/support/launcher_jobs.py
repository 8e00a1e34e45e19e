"""Entry points that the launcher's tests run in place of a training."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError
from loongforge.config.schema import Config

RANK = int(os.environ.get("RANK", "0"))


def succeed(config: Config, tree: dict[str, Any]) -> int:
    """Prints its place, and leaves it in a file."""
    print(f"hello from rank {RANK} of {os.environ['WORLD_SIZE']}, threads {os.environ['OMP_NUM_THREADS']}")
    return 0


def rank_1_dies(config: Config, tree: dict[str, Any]) -> int:
    """Rank 1 raises; the others fail over it a little later, or hang."""
    if RANK == 1:
        raise RuntimeError("the planted fault")
    while not (Path(sys.argv[2]) / "rank_1.error").exists():  # the log folder is the worker's second argument
        time.sleep(0.01)
    if RANK == 0:
        raise ConnectionError("peer closed the connection")
    time.sleep(600)
    return 0


def rank_1_is_killed(config: Config, tree: dict[str, Any]) -> int:
    """Rank 1 disappears without a word; rank 0 notices at once."""
    print("about to go", file=sys.stderr, flush=True)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3)  # a busy machine may start rank 1 late
    raise ConnectionError("peer closed the connection")


def user_error(config: Config, tree: dict[str, Any]) -> int:
    """All ranks find the same mistake."""
    raise UserError("data.train=nowhere: no such file")


def save_on_sigterm(config: Config, tree: dict[str, Any], folder: str) -> int:
    """Waits for a signal, saves, leaves."""
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    (Path(folder) / f"ready_{RANK}").touch()
    while not asked:
        time.sleep(0.05)
    (Path(folder) / f"saved_{RANK}").touch()
    return 130


def ignore_sigterm(config: Config, tree: dict[str, Any], folder: str) -> int:
    """Hangs, whatever it is told."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (Path(folder) / f"ready_{RANK}").write_text(str(os.getpid()))
    time.sleep(600)
    return 0


def meet(config: Config, tree: dict[str, Any]) -> int:
    """Joins torch's process group at the launcher's address."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return 0 if total.item() == int(os.environ["WORLD_SIZE"]) else 1
