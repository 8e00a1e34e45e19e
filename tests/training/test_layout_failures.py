"""A rank that is killed in the middle of training ends the job: at once, by name, and with all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.data.conftest import chat, png, write_jsonl
from tests.support.notes import without_notes
from tests.training.recipes import QUICK

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")

ENDS_WITHIN_S = 30
_STARTS_WITHIN_S = 90

# what of the layout dies: number of processes, overrides, rank
CASES = {
    "tensor-parallel rank": (2, ["model.llm.parallel.tp=2"], 1),
    "rank 0 of two stages": (2, ["model.llm.parallel.pp=2", "trainer.micro_batch_size=4"], 0),
    "language model rank beside an encoder": (3, ["model.vision.parallel.ranks=[0]"], 2),
    "encoder on the first rank": (3, ["model.vision.parallel.ranks=[0]", "model.llm.parallel.tp=2"], 0),
    "encoder on the last rank": (3, ["model.vision.parallel.ranks=[2]"], 2),
}


@contextmanager
def _training(run_dir: Path, data_dir: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """A run that would take hours; what is left of it after the test is killed."""
    fixed = ["trainer.steps=100000", f"run.dir={run_dir}", f"data.dir={data_dir}"]
    command = [sys.executable, "-m", "loongforge", "train", "+recipe=llava_sft", *QUICK, *fixed, *overrides]
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        for pid in _processes_of(run_dir):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def _processes_of(run_dir: Path) -> list[int]:
    """Living processes whose command line names the run: the launcher and its ranks."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace")  # empty for a dead one
        except OSError:
            continue
        if str(run_dir) in words:
            found.append(int(folder.name))
    return found


def _rank_pids(launcher: int) -> dict[int, int]:
    """Process id of every rank, read from the environments of the launcher's children."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environ = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        ranks = [word.removeprefix("RANK=") for word in environ if word.startswith("RANK=")]
        found.update({int(rank): int(child) for rank in ranks})
    return found


def _wait_for_steps(process: subprocess.Popen[str], run_dir: Path, number: int) -> None:
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + _STARTS_WITHIN_S
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= number):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it does not train"
        time.sleep(0.02)


@pytest.mark.parametrize("name", CASES)
def test_a_killed_rank_ends_the_job(name: str, tmp_path: Path, data_dir: Path) -> None:
    nproc, overrides, victim = CASES[name]
    run_dir = tmp_path / "run"
    with _training(run_dir, data_dir, f"launcher.nproc={nproc}", *overrides) as process:
        _wait_for_steps(process, run_dir, 3)
        pids = _rank_pids(process.pid)
        assert sorted(pids) == list(range(nproc))
        assert {process.pid, *pids.values()} <= set(_processes_of(run_dir))
        os.kill(pids[victim], signal.SIGKILL)
        output, errors = process.communicate(timeout=ENDS_WITHIN_S)
        assert _processes_of(run_dir) == []
    assert process.returncode == 1, output + errors
    assert without_notes(errors).lstrip().startswith(f"rank {victim} failed first (killed by SIGKILL"), errors
    assert f"its log: {run_dir / 'logs' / f'rank_{victim}.log'}" in errors
    assert "Traceback" not in output, output  # the others' complaints are in their logs


@pytest.mark.parametrize(
    "layout", [["launcher.nproc=4"], ["launcher.nproc=3", "model.vision.parallel.ranks=[2]"]], ids=["dp4", "decoupled"]
)
def test_a_bad_sample_is_named_whichever_rank_reads_it(layout: list[str], tmp_path: Path, data_dir: Path) -> None:
    """Its peers fail over the loss of that rank; the job ends with its reason, and as wrong input."""
    mine = write_jsonl(tmp_path, [{"id": str(i), "images": [f"{i}.png"], "messages": chat()} for i in range(24)])
    for number in range(24):
        (tmp_path / f"{number}.png").write_bytes(png()[: 40 if number == 17 else None])
    data = ["data=custom", f"data.train={mine}", f"data.tokenizer={data_dir / 'tokenizer'}"]
    fixed = [
        "trainer.steps=3",
        "trainer.global_batch_size=12",
        "trainer.micro_batch_size=1",
        f"run.dir={tmp_path / 'run'}",
    ]
    command = [sys.executable, "-m", "loongforge", "train", "+recipe=llava_sft", *QUICK, *data, *fixed, *layout]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "bad sample: line 18 of" in done.stderr
    assert "cannot be decoded" in done.stderr
    assert "Traceback" not in done.stderr
