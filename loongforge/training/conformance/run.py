"""Runs the stages, each in new processes with a time limit, and sums them up. No torch here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from loongforge.kernels.backend import Backend
from loongforge.kernels.verified import keep, machine
from loongforge.training.conformance.outcome import Check, StageResult, overall
from loongforge.training.conformance.stages import STAGES, Stage
from loongforge.training.launcher import reserved_port

SCHEMA = 1
_LOG_LINES = 15


def verify(
    backend: Backend,
    *,
    nproc: int,
    only: Sequence[str] = (),
    fault: str = "",
    limit: float | None = None,
    tell: Callable[[StageResult], None] = lambda result: None,
) -> dict[str, Any]:
    """Runs the suite.

    Args:
        backend: To be verified.
        nproc: Processes of stages that need several.
        only: Names of stages; others are left out, which is no pass. Empty: all.
        fault: Planted, to see that it is found.
        limit: Seconds for each stage in place of its own limit.
        tell: Called after each stage.

    Returns:
        The report, as plain values. One that passed is kept for this machine, unless it is emulated or had a fault.
    """
    emulated = backend.detect().state == "emulated"
    results: list[StageResult] = []
    with tempfile.TemporaryDirectory(prefix="loongforge-conformance-") as folder:
        for stage in STAGES:
            result = _stage(stage, backend, Path(folder), results, only, nproc, fault, limit)
            results.append(result)
            tell(result)
    report = {
        "schema": SCHEMA,
        "backend": backend.name,
        "emulated": emulated,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(backend),
        "nproc": nproc,
        "fault": fault or None,
        "outcome": overall(results),
        "stages": [result.as_json() for result in results],
        "measured": _measured(results),
    }
    if report["outcome"] == "pass" and not emulated and not fault:
        report["kept"] = str(keep(backend, report))
    return report


def _measured(results: Sequence[StageResult]) -> list[list[str]]:
    """(op, implementation) whose every check held."""
    checks = [check for result in results if result.stage == "ops" for check in result.checks]
    labels = {check.name.split()[0] for check in checks}
    bad = {check.name.split()[0] for check in checks if not check.ok}
    return [label.split("/") for label in sorted(labels - bad)]


def _stage(
    stage: Stage,
    backend: Backend,
    folder: Path,
    before: Sequence[StageResult],
    only: Sequence[str],
    nproc: int,
    fault: str,
    limit: float | None,
) -> StageResult:
    if only and stage.name not in only:
        return StageResult(stage.name, "skip", 0.0, message="not asked for")
    lacking = [name for name in stage.after if not any(r.stage == name and r.outcome == "pass" for r in before)]
    if lacking:
        return StageResult(stage.name, "skip", 0.0, message=f"needs {', '.join(lacking)}, which has not passed")
    began = time.monotonic()
    job = {
        "stage": stage.name,
        "function": stage.function,
        "backend": "cpu" if stage.on_cpu else backend.name,
        "folder": str(folder),
        "fault": fault,
    }
    environ = dict(backend.hidden_by) if stage.on_cpu else {}
    found = _processes(job, folder, environ, nproc if stage.ranks else 1, limit or stage.seconds)
    return _judge(stage.name, found, time.monotonic() - began)


Found = list["dict[str, Any] | str"]
"""Of each process: what it wrote, or how it ended without."""


def _processes(job: dict[str, Any], folder: Path, environ: Mapping[str, str], nproc: int, seconds: float) -> Found:
    name = job["stage"]
    path = folder / f"{name}.job"
    path.write_text(json.dumps(job))
    with reserved_port() as port:
        place = {"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1"}
        place |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        processes = []
        for rank in range(nproc):
            with (folder / f"{name}_{rank}.log").open("w") as log:
                command = [sys.executable, "-m", "loongforge.training.conformance.child", str(path)]
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                everything = {**os.environ, **environ, **place, **own}
                processes.append(
                    subprocess.Popen(command, env=everything, stdout=log, stderr=log, start_new_session=True)
                )
        late = _wait(processes, time.monotonic() + seconds)
    return [_read(folder, name, rank, process.returncode, late) for rank, process in enumerate(processes)]


def _wait(processes: Sequence[subprocess.Popen[bytes]], deadline: float) -> bool:
    """Until all have ended, or one has failed, or the time is up; whether it was. None is left behind."""
    try:
        while time.monotonic() < deadline:
            codes = [process.poll() for process in processes]
            if all(code is not None for code in codes):
                return False
            if any(code not in (None, 0) for code in codes):
                return False
            time.sleep(0.05)
        return True
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(folder: Path, name: str, rank: int, code: int, late: bool) -> dict[str, Any] | str:
    result = folder / f"{name}_{rank}.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    log = (folder / f"{name}_{rank}.log").read_text(errors="replace").splitlines()
    end = "\n".join(log[-_LOG_LINES:])
    return f"timeout: rank {rank} was killed\n{end}" if late else f"crash: rank {rank} ended with code {code}\n{end}"


def _judge(name: str, found: Found, seconds: float) -> StageResult:
    lost = [one for one in found if isinstance(one, str)]
    errors = [one["error"] for one in found if isinstance(one, dict) and "error" in one]
    if errors:
        return StageResult(name, "fail", seconds, message=errors[0])
    if lost:
        return StageResult(name, "timeout" if lost[0].startswith("timeout") else "crash", seconds, message=lost[0])
    ranks = [[Check(**check) for check in one["checks"]] for one in found if isinstance(one, dict)]
    # of several processes, each check is that of the first one for which it does not hold
    checks = [next((check for check in same if not check.ok), same[0]) for same in zip(*ranks, strict=True)]
    return StageResult(name, "pass" if checks and all(check.ok for check in checks) else "fail", seconds, checks)
