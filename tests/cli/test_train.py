"""What `train` hands to the processes: run folder, layout, the given world; and sweeps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loongforge.cli import multirun, processes
from loongforge.cli.main import main
from loongforge.config.errors import UserError

Capture = pytest.CaptureFixture[str]


class _Started:
    """Stands for the processes: notes what would have been run."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, entry: str, config: Any, found: Any, log_dir: Path, **arguments: Any) -> int:
        self.calls.append(dict(entry=entry, config=config, processes=found, log_dir=log_dir))
        return 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> _Started:
    """Runs nothing, in an empty folder, outside any world."""
    noted = _Started()
    monkeypatch.setattr(processes, "run_processes", noted)
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return noted


def test_run_dir_is_named_after_recipe_and_time_and_never_shared(started: _Started) -> None:
    for _ in range(3):
        assert main(["train", "+recipe=llava_sft"]) == 0
    folders = [call["config"].run.dir for call in started.calls]
    assert len(set(folders)) == 3
    assert all(re.fullmatch(r"runs/llava_sft/\d{8}-\d{6}(-\d+)?", folder) for folder in folders)
    assert all(Path(folder).is_dir() for folder in folders)
    assert started.calls[0]["processes"].size == 1


def test_time_is_resolved_once(started: _Started) -> None:
    assert main(["train", "+recipe=llava_sft", "run.dir=out/${now:%Y%m%d}"]) == 0
    assert re.fullmatch(r"out/\d{8}", started.calls[0]["config"].run.dir)


def test_processes_of_our_own(started: _Started) -> None:
    assert main(["train", "+recipe=llava_sft", "launcher.nproc=4", "model.llm.parallel.tp=2", "run.dir=x"]) == 0
    call = started.calls[0]
    assert (call["processes"].size, call["processes"].given) == (4, None)
    assert call["log_dir"] == Path("x/logs")
    assert call["entry"] == "loongforge.training.main:run"


def test_a_given_world_is_joined(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    world = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29"}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "+recipe=llava_sft", "launcher.nproc=7"]) == 0
    call = started.calls[0]
    assert (call["processes"].size, call["processes"].given.rank) == (2, 1)
    assert call["config"].run.dir is None  # rank 0 decides
    assert not Path("runs").exists()


def test_slurm_is_joined(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"})
    monkeypatch.setattr("loongforge.training.world.join_given_world.__defaults__", (os.environ,))
    assert main(["train", "+recipe=llava_sft"]) == 0
    assert started.calls[0]["processes"].size == 2
    assert Path("runs/llava_sft").is_dir()


def test_sweeps_are_expanded_as_hydra_does() -> None:
    jobs = multirun.expand(["+recipe=a", "x=1,2", "y=range(1,3)", "z=choice(p,q)"])
    assert len(jobs) == 8
    assert jobs[0] == ["+recipe=a", "x=1", "y=1", "z=p"]
    assert jobs[-1] == ["+recipe=a", "x=2", "y=2", "z=q"]
    assert multirun.expand(["x=1,2", "~y", "z='a,b'"]) == [["x=1", "z='a,b'", "~y"], ["x=2", "z='a,b'", "~y"]]


def test_a_wrong_job_stops_the_sweep_before_it_starts(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", "+recipe=llava_sft", "trainer.steps=1,abc"]) == 2
    assert "trainer.steps='abc'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_each_job_has_its_own_process_and_folder(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed job does not stop the others, and is told of at the end."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def fake(command: list[str]) -> int:
        commands.append(command)
        return 2 if "optimizer.lr=0.002" in command else 0

    monkeypatch.setattr(multirun, "_run_job", fake)
    argv = ["train", "-m", "+recipe=llava_sft", "optimizer.lr=1e-3,2e-3", "llm=llama_tiny,qwen3_tiny"]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert out.count("FAILED, exit code 2") == 2
    assert len(commands) == 4
    assert all(command[1:4] == ["-m", "loongforge", "train"] for command in commands)
    folders = [command[-1] for command in commands]
    assert [re.fullmatch(r"run.dir='multirun/[\d-]+/(\d)'", folder).group(1) for folder in folders] == list("0123")  # type: ignore[union-attr]


def test_jobs_really_run_in_processes(tmp_path: Path) -> None:
    argv = [
        "-m",
        "+recipe=llava_sft",
        "data.builtin=null",
        "data.train=gone.jsonl",
        "data.tokenizer=gone",
        "trainer.seed=1,2",
    ]
    command = [sys.executable, "-m", "loongforge", "train", *argv, "run.dir=sweep"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert run.returncode == 1, run.stderr
    assert run.stdout.count("FAILED") == 2
    assert sorted(folder.name for folder in (tmp_path / "sweep").iterdir()) == ["0", "1"]


def test_writable_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.dir=.*choose another with run\.dir=DIR"):
        processes.writable(tmp_path / "file" / "sub", "run.dir")


def test_a_mistake_found_late_leaves_no_run_folder(started: _Started, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(entry: str, config: Any, found: Any, log_dir: Path) -> int:
        log_dir.mkdir()
        (log_dir / "rank_0.log").touch()
        raise UserError("data.train=gone: no such file")

    monkeypatch.setattr(processes, "run_processes", fail)
    assert main(["train", "+recipe=llava_sft"]) == 2
    assert list(Path("runs/llava_sft").iterdir()) == []
    Path("mine").mkdir()
    assert main(["train", "+recipe=llava_sft", "run.dir=mine"]) == 2
    assert Path("mine").is_dir()  # a folder that the user named stays
