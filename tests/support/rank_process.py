"""One rank of a `RankPool`: runs the calls whose folders it is sent, until there are no more."""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def main(environ: dict[str, str], log: Path, folders: Connection) -> None:
    """Leaves after the first call that fails: its peers may hang in a collective that nobody joins any more."""
    os.setsid()  # is killed with what it starts
    os.environ.clear()
    os.environ.update(environ)
    _write_to(log)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    while folder := _next(folders):
        ok, value = _run(folder)
        sys.stdout.flush()
        _write(folder / f"rank_{environ['RANK']}.pkl", (ok, value))
        if not ok:
            break
    os._exit(0)  # no destructor of a process group decides how this ends


def _write_to(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _next(folders: Connection) -> Path | None:
    try:
        return folders.recv()
    except EOFError:
        return None


def _run(folder: Path) -> tuple[bool, Any]:
    try:
        function, args, port = pickle.loads((folder / "call.pkl").read_bytes())
        os.environ["MASTER_PORT"] = str(port)
        value = function(*args)
        pickle.dumps(value)
        _leave_process_group()
        return True, value
    except BaseException:
        return False, traceback.format_exc()


def _leave_process_group() -> None:
    """So that the next call can make its own."""
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        gc.collect()  # DDP objects go before their groups
        dist.barrier()
        dist.destroy_process_group()


def _write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps(value))
    part.replace(path)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
