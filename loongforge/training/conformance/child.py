"""A process of a stage: `python -m loongforge.training.conformance.child JOB.json`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loongforge.kernels.backend import select


def _checks(job: dict[str, Any]) -> list[dict[str, Any]]:
    backend = select(job["backend"])
    backend.set_threads(1)
    backend.activate()
    from loongforge.parallel.session import joined_world
    from loongforge.training.conformance.context import Context

    if job["fault"] == f"hang:{job['stage']}":
        time.sleep(10_000)
    if job["fault"] == f"crash:{job['stage']}":
        os.abort()
    module, _, name = job["function"].partition(":")
    with joined_world(backend) as world:
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        context = Context(backend, backend.device(), Path(job["folder"]), world.rank, world.size, job["fault"])
        return [asdict(check) for check in function(context)]


def main(path: Path) -> None:
    """Writes `{"checks": [...]}` or `{"error": traceback}` beside the job."""
    job = json.loads(path.read_text())
    try:
        found: dict[str, Any] = {"checks": _checks(job)}
    except BaseException:
        found = {"error": traceback.format_exc()}
    result = path.with_name(f"{job['stage']}_{os.environ['RANK']}.json")
    temporary = result.with_suffix(".part")
    temporary.write_text(json.dumps(found))
    temporary.replace(result)
    sys.stdout.flush()
    os._exit(0)  # a backend's threads may hang while the interpreter is torn down


if __name__ == "__main__":
    main(Path(sys.argv[1]))
