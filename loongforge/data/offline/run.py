"""Packs a data set window by window into a folder that appears when it is complete; an interrupted run goes on."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from loongforge.config.errors import UserError
from loongforge.data.offline.job import Job
from loongforge.data.offline.measuring import Measuring, measuring
from loongforge.data.offline.report import Packed
from loongforge.data.offline.window import Window
from loongforge.data.quarantine import QuarantineLedger, check_ratio

MANIFEST = "packing.json"
"""In a finished folder: what was packed, and how."""
_PLAN = "unfinished.json"
_log = logging.getLogger(__name__)
Watch = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def pack_data(job: Job, out: Path, *, workers: int, watch: Watch) -> Packed:
    """Writes the rows of a job to the folder `out`, where they are not there yet.

    Args:
        job: what and how.
        out: appears when it is complete; until then all is in `.NAME.partial` beside it.
        workers: processes that measure.
        watch: shows how many samples are done.

    Raises:
        UserError: a bad sample, too many of them, or a folder with something else.
    """
    plan = json.loads(json.dumps(job.plan()))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.parent / f".{out.name}.lock"):
            finished = _finished(out, plan)
            return finished if finished is not None else _write(job, plan, out, workers, watch)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; choose another folder") from error


def _finished(out: Path, plan: dict[str, Any]) -> Packed | None:
    """What is there; raises where that is anything but these packs or nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        found, counts = manifest["plan"], Packed(**manifest["packed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out} is there already, and holds no packs; choose another folder") from error
    differs = _differs(found, plan)
    if differs:
        raise UserError(
            f"{out} holds packs made with another {' and '.join(differs)}; remove it, or choose another folder"
        )
    return counts


def _differs(found: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    return [name for name in plan if found.get(name) != plan[name]]


def _write(job: Job, plan: dict[str, Any], out: Path, workers: int, watch: Watch) -> Packed:
    partial = out.parent / f".{out.name}.partial"
    _begin(partial, plan)
    with (
        measuring(job.sources, job.processor, index_dir=job.data.index_dir, workers=workers) as measured,
        watch(job.positions) as advance,
    ):
        total = _windows(job, partial, measured, advance)
    _replace(partial / MANIFEST, {"packed": asdict(total), "plan": plan})
    for path in [*partial.glob("window-*.json"), partial / _PLAN]:
        path.unlink()
    if out.exists():
        out.rmdir()  # empty
    os.rename(partial, out)
    return total


def _begin(partial: Path, plan: dict[str, Any]) -> None:
    """Keeps what an interrupted run of the same plan has finished."""
    if (partial / _PLAN).exists():
        differs = _differs(json.loads((partial / _PLAN).read_text()), plan)
        if not differs:
            return
        _log.warning("begins anew: %s was left by a run with another %s", partial, " and ".join(differs))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _replace(partial / _PLAN, plan)


def _windows(job: Job, partial: Path, measured: Measuring, advance: Callable[[int], None]) -> Packed:
    ledger, total = QuarantineLedger(partial / "quarantine.jsonl", job.data.max_bad), Packed()
    for number, positions in enumerate(job.windows):
        done = partial / f"window-{number:05d}.json"
        if done.exists():
            total += Packed(**json.loads(done.read_text()))
        else:
            for stale in partial.glob(f"rows-{number:05d}-*"):  # of a run that was stopped here
                stale.unlink()
            packed, bad = Window(job, number, positions).write(partial, measured)
            ledger.record(bad)
            total += packed
            if bad:
                check_ratio(total.left_out, total.samples, job.data.max_bad_ratio, bad[-1])
            _replace(done, asdict(packed))
        advance(len(positions))
    if not total.rows:
        shutil.rmtree(partial)
        raise UserError("data.train: there is no good sample to pack; see `loongforge data check`")
    return total


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Readers see the old file or the new one, whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
