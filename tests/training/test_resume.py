"""A run that is killed at any moment goes on as if nothing had happened: bit by bit, sample by sample."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.recipes import samples_of, steps_of

STEPS = 40
KILLS = 20

# Forks one run after another from a process that has imported everything, and kills each at a random moment.
_DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
run_dir, data_dir, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
number, overrides = sys.argv[4], sys.argv[5:]
from loongforge.kernels.backend import select
select("auto").activate()
import torch
torch.set_num_threads(1)
import loongforge.training.trainer
import transformers.tokenization_utils_base
from loongforge.training.main import run
from tests.training.recipes import quick_config

rng = random.Random(int(number))
run_dir.mkdir(parents=True, exist_ok=True)
for attempt in range(kills + 1):
    pid = os.fork()
    if not pid:
        log = os.open(run_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        code = 1
        try:
            code = run(*quick_config(run_dir, data_dir, *overrides))
        finally:
            os._exit(code)
    if attempt < kills:
        metrics = run_dir / "metrics.jsonl"
        before = metrics.read_bytes().count(b"\\n") if metrics.exists() else 0
        deadline = time.monotonic() + 60
        wanted = before + rng.randint(1, 3)
        while time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0):
            if metrics.exists() and metrics.read_bytes().count(b"\\n") >= wanted:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.06))
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
    else:
        _, status = os.waitpid(pid, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
"""


def _drive(run_dir: Path, data_dir: Path, *overrides: str, kills: int = 0, seed: int = 0) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(run_dir), str(data_dir), str(kills), str(seed), *overrides],
        timeout=250,
        capture_output=True,
        text=True,
        check=False,
    )
    log = run_dir.with_suffix(".log")
    assert done.returncode == 0, done.stderr + (log.read_text()[-4000:] if log.exists() else "")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    _drive(run_dir, data_dir, f"trainer.steps={STEPS}", "checkpoint.every=2")
    return run_dir


def test_killed_again_and_again(uninterrupted: Path, data_dir: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    _drive(killed, data_dir, f"trainer.steps={STEPS}", "checkpoint.every=2", kills=KILLS, seed=random.randrange(1000))
    assert (killed.with_suffix(".log")).read_text().count("going on after step") >= KILLS // 2
    assert steps_of(killed) == steps_of(uninterrupted)
    assert samples_of(killed) == samples_of(uninterrupted)


def test_the_order_of_samples_is_seen(uninterrupted: Path, data_dir: Path, tmp_path: Path) -> None:
    """The comparison above fails where a run reads other samples."""
    other = tmp_path / "other"
    _drive(other, data_dir, f"trainer.steps={STEPS}", "checkpoint.every=2", "data.shuffle=false")
    assert steps_of(other) != steps_of(uninterrupted)
    assert samples_of(other) != samples_of(uninterrupted)


def test_a_signal_saves_and_leaves(uninterrupted: Path, data_dir: Path, tmp_path: Path) -> None:
    from tests.training.recipes import QUICK

    run_dir = tmp_path / "stopped"
    command = [
        *(sys.executable, "-m", "loongforge", "train", "+recipe=llava_sft", *QUICK),
        *(f"run.dir={run_dir}", f"data.dir={data_dir}", f"trainer.steps={STEPS}", "checkpoint.every=2"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        metrics = run_dir / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 5):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert len(steps_of(run_dir)) < STEPS, "it came too late"
    _drive(run_dir, data_dir, f"trainer.steps={STEPS}", "checkpoint.every=2")
    assert steps_of(run_dir) == steps_of(uninterrupted)


def test_other_number_of_ranks(uninterrupted: Path, data_dir: Path, tmp_path: Path) -> None:
    """Begun on two data-parallel ranks, continued on one process: the same samples, the same curve."""
    from tests.training.recipes import QUICK

    run_dir = tmp_path / "two"
    shared = [f"run.dir={run_dir}", f"data.dir={data_dir}", "checkpoint.every=2", "optimizer.distributed=true"]
    schedule = ["optimizer.schedule=constant", "optimizer.warmup_steps=0", "optimizer.lr=1e-4"]
    command = [sys.executable, "-m", "loongforge", "train", "+recipe=llava_sft", *QUICK, *shared, *schedule]
    subprocess.run([*command, "launcher.nproc=2", "trainer.steps=10"], timeout=120, check=True, capture_output=True)
    _drive(run_dir, data_dir, *schedule, "checkpoint.every=2", "optimizer.distributed=true", "trainer.steps=20")
    straight = tmp_path / "straight"
    _drive(straight, data_dir, *schedule, "trainer.steps=20")
    pairs = list(zip(steps_of(run_dir), steps_of(straight), strict=True))
    assert len(pairs) == 20
    assert max(abs(a["loss"] - b["loss"]) for a, b in pairs) < 2e-5
