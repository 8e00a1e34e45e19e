"""`loongforge train -m`: a sweep, each job in processes of its own."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from loongforge.config.errors import UserError

_INTERRUPTED = 130


def run_all(args: argparse.Namespace) -> int:
    """Checks every job, then runs them one after the other; 1 where any failed.

    Raises:
        UserError: a job's recipe is wrong; nothing has been started then.
    """
    from loongforge.cli.processes import writable
    from loongforge.cli.recipe_args import load_recipe, show

    jobs = expand(args.overrides)
    for job in jobs:
        single = argparse.Namespace(**{**vars(args), "overrides": job})
        try:
            show(single) if args.cfg or args.info else load_recipe(single)
        except UserError as error:
            raise UserError(f"job {' '.join(job)}: {error}") from error
    if args.cfg or args.info:
        return 0
    given = [text.partition("=")[2] for text in args.overrides if text.lstrip("+").startswith("run.dir=")]
    base = Path(given[-1]) if given else Path("multirun") / time.strftime("%Y%m%d-%H%M%S")
    writable(base, "run.dir")
    return _run_jobs(jobs, base, [f"--config-dir={folder}" for folder in args.config_dir])


def expand(overrides: list[str]) -> list[list[str]]:
    """Every combination of the overrides' choices (`a=1,2`, `range(1,4)`, `choice(a,b)`), in hydra's order."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    from loongforge.config.overrides import parse

    parsed = parse(overrides)
    deleted = [override.input_line or "" for override in parsed if override.is_delete()]  # hydra would add a `=`
    kept = [override for override in parsed if not override.is_delete()]
    return [[*job, *deleted] for job in BasicSweeper.split_arguments(kept, max_batch_size=None)[0]]


def _run_jobs(jobs: list[list[str]], base: Path, options: list[str]) -> int:
    from loongforge.config.overrides import quoted

    outcomes: list[tuple[list[str], int]] = []
    for number, job in enumerate(jobs):
        folder = base / str(number)
        print(f"job {number} of {len(jobs)} -> {folder}: {' '.join(job)}", flush=True)
        command = [sys.executable, "-m", "loongforge", "train", *options, *job, f"run.dir={quoted(str(folder))}"]
        outcomes.append((job, _run_job(command)))
        if outcomes[-1][1] == _INTERRUPTED:
            break
    for number, (job, code) in enumerate(outcomes):
        print(f"job {number}: {'done' if code == 0 else f'FAILED, exit code {code}'}   {' '.join(job)}")
    codes = [code for _, code in outcomes]
    return _INTERRUPTED if _INTERRUPTED in codes else int(any(codes))


def _run_job(command: list[str]) -> int:
    # A session of its own: Ctrl-C reaches the job through us, once.
    process = subprocess.Popen(command, start_new_session=True)
    with _signals_to(process):
        return process.wait()


@contextmanager
def _signals_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if process.poll() is None:
            process.send_signal(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
