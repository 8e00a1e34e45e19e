"""Runs with chosen kernels: the plain formulas learn the same, a change is said, a wrong name is the user's.

Each run has a process of its own, since kernels are bound once in each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.files import REPO
from tests.training.recipes import steps_of

QUICK = ("trainer.eval_every=0", "trainer.sanity_samples=0", "trainer.eval_samples=8", "trainer.generate_samples=0")


def _train(data_dir: Path, run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = ["train", "+recipe=llava_sft", f"data.dir={data_dir}", f"run.dir={run_dir}", "launcher.nproc=1", *QUICK]
    command = [sys.executable, "-m", "loongforge", *argv, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=REPO)


def _compare(folder: Path, data_dir: Path, steps: int) -> None:
    losses = []
    for kernels in ("auto", "reference"):
        done = _train(data_dir, folder / kernels, f"kernels.all={kernels}", f"trainer.steps={steps}")
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append([record["loss"] for record in steps_of(folder / kernels)])
        used = json.loads((folder / kernels / "kernels.json").read_text())["kernels"]
        expected = {"auto": "torch", "reference": "reference"}[kernels]
        assert next(kernel for kernel in used if kernel["op"] == "attention")["implementation"] == expected
        assert ("reference (all ops)" in done.stdout) == (kernels == "reference")
    assert len(losses[0]) == len(losses[1]) == steps
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-5


def test_plain_formulas_learn_the_same(tmp_path: Path, data_dir: Path) -> None:
    _compare(tmp_path, data_dir, 6)


@pytest.mark.slow
def test_plain_formulas_learn_the_same_over_100_steps(tmp_path: Path, data_dir: Path) -> None:
    _compare(tmp_path, data_dir, 100)


def test_other_kernels_on_the_way_are_said(tmp_path: Path, data_dir: Path) -> None:
    run_dir = tmp_path / "run"
    assert _train(data_dir, run_dir, "trainer.steps=2").returncode == 0
    done = _train(data_dir, run_dir, "trainer.steps=3", "kernels.swiglu=reference")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kernels have changed: swiglu torch -> reference" in done.stdout


def test_a_wrong_name_is_the_users(tmp_path: Path, data_dir: Path) -> None:
    done = _train(data_dir, tmp_path / "run", "kernels.swiglu=toch")
    assert done.returncode == 2
    assert "kernels.swiglu='toch' is not known. Did you mean 'torch'?" in done.stderr
    done = _train(data_dir, tmp_path / "run", "kernels.swigul=torch")
    assert done.returncode == 2
    assert "Did you mean 'kernels.swiglu'?" in done.stderr
