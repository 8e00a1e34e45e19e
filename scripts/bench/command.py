"""The commands of loongforge as benchmarks run them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

WARM_UP = 2


def run(*argv: str) -> str:
    """Runs loongforge; returns what it printed. Ends this process where it fails."""
    command = [sys.executable, "-m", "loongforge", *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def train(run_dir: Path, overrides: list[str], steps: int) -> list[dict[str, Any]]:
    """Trains in a folder that is removed afterwards: `metrics.jsonl` of so many steps, after two that warm up."""
    run("train", *overrides, f"run.dir={run_dir}", f"trainer.steps={steps + WARM_UP}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(run_dir)
    return [line for line in lines if "step_time_s" in line][WARM_UP:]
