"""What only a GPU can tell: the conformance suite on it. Run with `-m gpu`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.files import REPO


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_cuda_conforms(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "-m", "loongforge", "backends", "verify", "--backend", "cuda", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    report = json.loads(out.read_text())
    failed = [(s["stage"], c["name"]) for s in report["stages"] for c in s["checks"] if not c["ok"]]
    assert (report["outcome"], failed) == ("pass", []), done.stdout[-5000:]
