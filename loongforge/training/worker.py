"""One process of the launcher: `python -m loongforge.training.worker JOB LOG_DIR WATCH_FD`."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

from loongforge.config.errors import RunError, UserError
from loongforge.training.rank_log import tee_output

INTERRUPTED = 130


def leave_with_launcher(watch_fd: int) -> None:
    """Ends this process at once when the launcher is gone: nobody writes to the pipe, it can only close."""

    def watch() -> None:
        os.read(watch_fd, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher-watch").start()


def _note_failure(log_dir: Path, rank: int, error: BaseException) -> int:
    """Leaves the launcher a note of when and why this rank failed; returns the exit code.

    Nothing goes to the terminal: the launcher shows the first failure, which may be another rank's.
    """
    user = isinstance(error, UserError)
    told = user or isinstance(error, RunError)
    text = str(error) if told else "".join(traceback.format_exception(error))
    note = log_dir / f"rank_{rank}.error"
    temporary = note.with_suffix(".tmp")
    temporary.write_text(json.dumps({"time": time.time(), "user_error": user, "text": text}), encoding="utf-8")
    temporary.replace(note)
    with (log_dir / f"rank_{rank}.log").open("a", encoding="utf-8") as log:
        log.write(text + "\n")
    return 2 if user else 1


def _run(job_file: Path, log_dir: Path, rank: int) -> int:
    from loongforge.training.job import Job

    try:
        return Job.load(job_file).run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else int(request.code is not None)
    except BaseException as error:  # reported by the launcher, whatever it is
        return _note_failure(log_dir, rank, error)


def main(argv: list[str]) -> int:
    """Runs one rank; only rank 0 has the terminal, and copies what it prints to its log."""
    job_file, log_dir, watch_fd, rank = Path(argv[0]), Path(argv[1]), int(argv[2]), int(os.environ["RANK"])
    leave_with_launcher(watch_fd)
    faulthandler.enable()
    with tee_output(log_dir / "rank_0.log") if rank == 0 else nullcontext():
        return _run(job_file, log_dir, rank)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: gloo can deadlock while the interpreter is torn down.
    os._exit(code)
