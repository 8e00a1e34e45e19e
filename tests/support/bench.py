"""Scripts of scripts/bench, run or imported."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from loongforge.kernels.backend import select
from tests.repo.files import REPO


def run_bench(script: str, *options: str) -> dict[str, Any]:
    """What a benchmark prints with --json."""
    command = [sys.executable, str(REPO / "scripts" / "bench" / f"{script}.py"), *options, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bench_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One of them as a module, beside which the others are found."""
    select("cpu").activate()
    monkeypatch.syspath_prepend(str(REPO / "scripts" / "bench"))
    return importlib.import_module(name)
