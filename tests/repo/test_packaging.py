"""What a user gets with `pip install`: every package, the recipes, the backends; the checkout is not needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.repo.files import REPO, SOURCES, repo_files, source_modules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest


def _project() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


# In a process of its own: the backend comes before megatron-core, and other tests start without either.
_IMPORT_ALL = """
import importlib, sys
from loongforge.kernels.backend import select
select("cpu").activate()
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_every_module_imports() -> None:
    names = [name for name in source_modules() if not name.endswith("__main__")]
    ran = subprocess.run([sys.executable, "-c", _IMPORT_ALL, *names], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_every_package_folder_is_listed() -> None:
    listed = set(tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {name for name, file in source_modules().items() if file.name == "__init__.py"}
    assert listed == packages | {"loongforge.configs", "loongforge.recipes"}


def test_every_python_that_we_name_has_a_stage() -> None:
    """What pyproject.toml claims is what scripts/test_pythons.sh and CI run."""
    claimed = [name for name in _project()["classifiers"] if name.startswith("Programming Language :: Python :: ")]
    stages = re.search(r"STAGES:-([^}]*)\}", (REPO / "scripts" / "test_pythons.sh").read_text())
    assert stages is not None
    tested = {stage.split(":")[0] for stage in stages[1].split()} | {"3.11"}
    assert {name.split(" :: ")[-1] for name in claimed} == tested
    assert _project()["requires-python"] == f">={min(tested, key=lambda version: int(version[2:]))}"


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {file.parent for root in SOURCES for file in root.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no `build/` folder of the checkout leaks into it."""
    folder = tmp_path_factory.mktemp("wheel")
    for file in repo_files():
        copy = folder / "repo" / file.relative_to(REPO)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "repo"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


def test_wheel_is_complete(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {"loongforge/py.typed"}
    for root, target in {"loongforge": "loongforge", "backends": "loongforge_backends"}.items():
        expected |= {f"{target}/{file.relative_to(REPO / root)}" for file in (REPO / root).rglob("*.py")}
    for folder in ("configs", "recipes"):
        expected |= {f"loongforge/{file.relative_to(REPO)}" for file in (REPO / folder).rglob("*.yaml")}
    assert expected <= inside, f"missing: {sorted(expected - inside)}"
    foreign = [name for name in inside if not name.startswith(("loongforge/", "loongforge_backends/", "loongforge-"))]
    assert not foreign
    assert any(name.endswith("licenses/LICENSE") for name in inside)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-c", "import loongforge; print(loongforge.__file__)"], "unpacked"),
        (["-c", "import loongforge_backends; print(loongforge_backends.__file__)"], "unpacked"),
        (["-m", "loongforge", "recipes", "list"], "llava_sft"),
        (["-m", "loongforge", "config", "show", "+recipe=llava_sft"], "clip_vit"),
        (["-m", "loongforge", "backends"], "cpu"),
    ],
    ids=["package", "backends", "recipes", "configs", "entry-point"],
)
def test_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path, arguments: list[str], expected: str) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    (tmp_path / "empty").mkdir()
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")}
    command = [sys.executable, *arguments]
    ran = subprocess.run(
        command, cwd=tmp_path / "empty", env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert expected in ran.stdout
    assert not list((tmp_path / "empty").iterdir())
