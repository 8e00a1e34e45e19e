"""How a backend is found and chosen; one from another distribution trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loongforge.config.errors import UserError
from loongforge.kernels import backend as module
from loongforge.kernels.backend import Detection, Problem, installed, select
from tests.repo.files import REPO

TOY = Path(__file__).parent / "toy"


def _backend(name: str, order: int, detection: Detection) -> Callable[[], Any]:
    return lambda: SimpleNamespace(name=name, title=name.title(), probe_order=order, detect=lambda: detection)


@pytest.fixture
def choose_from(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def give(*backends: Callable[[], Any]) -> None:
        points = [SimpleNamespace(name="x", dist=None, load=lambda made=made: made) for made in backends]
        monkeypatch.setattr(module, "entry_points", lambda group: points)

    return give


OK, ABSENT = Detection("ok"), Detection("absent", ("nothing there",))
BROKEN = Detection("broken", ("a driver",), (Problem("half installed", "install the rest", fatal=True),))


def test_a_vendor_that_looks_like_another_is_asked_first(choose_from: Callable[..., None]) -> None:
    choose_from(_backend("cpu", 100, OK), _backend("cuda", 20, OK), _backend("kunlun", 10, OK))
    assert list(installed()) == ["kunlun", "cuda", "cpu"]
    assert select("auto").name == "kunlun"


def test_what_is_absent_is_passed_over(choose_from: Callable[..., None]) -> None:
    choose_from(_backend("cpu", 100, OK), _backend("cuda", 20, Detection("no_device")), _backend("kunlun", 10, ABSENT))
    assert select("auto").name == "cpu"


def test_what_is_broken_is_not(choose_from: Callable[..., None]) -> None:
    choose_from(_backend("cpu", 100, OK), _backend("kunlun", 10, BROKEN))
    with pytest.raises(UserError, match=r"auto found Kunlun, which cannot be used: broken: half installed \(install"):
        select("auto")
    assert select("cpu").name == "cpu"


def test_a_name_is_never_another_backend(choose_from: Callable[..., None]) -> None:
    choose_from(_backend("cpu", 100, OK), _backend("cuda", 20, ABSENT))
    with pytest.raises(UserError, match=r"backend='cuda' cannot be used on this machine: absent: nothing there"):
        select("cuda")


def test_a_backend_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("npu", "no_such_module:Backend", module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(module, "entry_points", lambda group: [point])
    with pytest.raises(UserError, match="backend 'npu' does not load: ModuleNotFoundError"):
        installed()


def _toy_environment(folder: Path) -> dict[str, str]:
    """As `pip install toy-backend` would leave it: a module, and an entry point of another distribution."""
    (folder / "toy_backend.py").write_text((TOY / "toy_backend.py").read_text())
    info = folder / "toy_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-backend\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[loongforge.backends]\ntoy = toy_backend:ToyBackend\n")
    path = os.pathsep.join([str(folder), *filter(None, sys.path), str(REPO)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LOONGFORGE_CACHE": str(folder)}


def test_a_backend_of_another_distribution(tmp_path: Path) -> None:
    environ = _toy_environment(tmp_path)

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "loongforge", *words]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    found = {one["name"]: one for one in json.loads(run("backends", "--json"))}
    toy = found["toy"]
    assert (toy["available"], toy["auto"], found["cpu"]["auto"]) == (True, False, True)
    chosen = {kernel["op"]: kernel["implementation"] for kernel in toy["kernels"]}
    assert (chosen["swiglu"], chosen["gelu"]) == ("toy", "torch")
    quick = ["trainer.steps=2", "trainer.eval_every=0", "trainer.sanity_samples=0", "trainer.eval_samples=8"]
    out = run("train", "+recipe=llava_sft", "backend=toy", "run.dir=run", *quick)
    assert "backend A toy" in out
    assert "toy (swiglu)" in out
    meta = json.loads((tmp_path / "run" / "checkpoints" / "step_00000002" / "manifest.json").read_text())
    assert "toy" in json.dumps(meta)
