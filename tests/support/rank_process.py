"""One rank of a `RankPool`: runs the calls whose folders it reads from stdin, until stdin closes."""

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
from pathlib import Path
from typing import Any

RANK = int(os.environ.get("RANK", "0"))


def main() -> None:
    """Leaves after the first call that fails: its peers may hang in a collective that nobody joins any more."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        ok, value = _run(folder)
        sys.stdout.flush()
        _write(folder / f"rank_{RANK}.pkl", (ok, value))
        if not ok:
            break
    os._exit(0)  # no destructor of a process group decides how this ends


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


if __name__ == "__main__":
    main()
