"""A checkpoint is whole or it does not exist, whenever its writer is killed."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loongforge.checkpoint.lifecycle import LATEST, MANIFEST, CheckpointStore, resolve
from loongforge.config.errors import UserError

_SAVING_LOOP = """
import sys
from pathlib import Path
from loongforge.checkpoint.lifecycle import CheckpointStore
root, step = Path(sys.argv[1]), int(sys.argv[2])
store = CheckpointStore(root, keep=2)
while True:
    step += 1
    def write(path):
        for n in range(4):
            (path / f"part_{n}").write_bytes(bytes([step % 256]) * 200_000)
    store.save(step, write, {"step": step}, is_writer=True, barrier=lambda: None)
    print(step, flush=True)
"""


def _save(store: CheckpointStore, step: int) -> Path:
    def write(path: Path) -> None:
        (path / "weights").write_bytes(bytes([step]) * 3_000_000)
        (path / "deep").mkdir()
        (path / "deep" / "small.json").write_text(f"[{step}]")

    return store.save(step, write, {"at": step}, is_writer=True, barrier=lambda: None)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    rng, last = random.Random(1), 0
    for _ in range(25):
        with subprocess.Popen(
            [sys.executable, "-c", _SAVING_LOOP, str(tmp_path), str(last)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            published = int(process.stdout.readline())
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            rest = process.stdout.read().split("\n")
        published = max([published, *(int(line) for line in rest[:-1] if line)])
        found = CheckpointStore(tmp_path, keep=2).latest()
        assert found.checkpoint is not None
        assert found.checkpoint.step >= published, "a checkpoint that was published is gone"
        assert not found.warnings, "a folder that is not whole has the name of a checkpoint"
        content = {(found.checkpoint.path / f"part_{n}").read_bytes() for n in range(4)}
        assert content == {bytes([found.checkpoint.step % 256]) * 200_000}
        last = found.checkpoint.step


def test_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        _save(store, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == [LATEST, "step_00000002", "step_00000003"]
    assert (tmp_path / LATEST).read_text() == "step_00000003\n"


def test_leftovers_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".step_00000009.writing").mkdir()
    _save(CheckpointStore(tmp_path, keep=1), 1)
    assert not list(tmp_path.glob(".step_*"))


def _truncate(path: Path) -> None:
    with open(path / "weights", "r+b") as file:
        file.truncate(1000)


def _change(path: Path) -> None:
    (path / "deep" / "small.json").write_text("[7]")


FAULTS = {
    "1000 bytes instead of 3000000": _truncate,
    "deep/small.json has other contents": _change,
    "weights is missing": lambda path: (path / "weights").unlink(),
    "no manifest.json": lambda path: (path / MANIFEST).unlink(),
    "manifest.json cannot be read": lambda path: (path / MANIFEST).write_text("{"),
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_torn_folder_is_never_chosen(words: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    _save(store, 1)
    torn = _save(store, 2)
    FAULTS[words](torn)
    found = store.latest()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 1
    assert len(found.warnings) == 1
    assert torn.name in found.warnings[0]
    assert words in found.warnings[0]
    with pytest.raises(UserError, match=words.split()[0]):
        resolve(torn)


def test_latest_may_lag_behind(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    _save(store, 1)
    pointer = (tmp_path / LATEST).read_text()
    _save(store, 2)
    (tmp_path / LATEST).write_text(pointer)
    found = store.latest()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 2


def test_going_back_drops_what_is_newer(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        _save(store, step)
    _save(store, 2)
    found = store.latest()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 2


def test_resolve_takes_a_run_a_folder_or_a_checkpoint(tmp_path: Path) -> None:
    path = _save(CheckpointStore(tmp_path / "checkpoints", keep=2), 5)
    for place in (tmp_path, tmp_path / "checkpoints", path):
        assert resolve(place).path == path
    moved = tmp_path / "elsewhere"
    shutil.copytree(path, moved)
    assert resolve(moved).meta == {"at": 5}
    with pytest.raises(UserError, match="holds no checkpoint"):
        resolve(tmp_path / "checkpoints" / "step_00000005" / "deep")
    with pytest.raises(UserError, match="no such folder"):
        resolve(tmp_path / "nothing")
