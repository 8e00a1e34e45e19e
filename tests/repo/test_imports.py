"""The import contracts of pyproject.toml hold, and a breach of each is seen."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.files import REPO

_LINT = [
    sys.executable,
    "-c",
    "from importlinter.cli import lint_imports_command; lint_imports_command()",
    "--no-cache",
]


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_LINT, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_imports_run_one_way() -> None:
    linted = _lint(REPO)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(
    ("file", "imported"),
    [
        ("loongforge/config/errors.py", "loongforge.kernels.backend"),
        ("loongforge/model/vlm.py", "loongforge.data.batch"),
        ("loongforge/parallel/layout.py", "loongforge.components.context"),
        ("loongforge/components/llm/base.py", "loongforge.components.vision.base"),
        ("loongforge/training/worker.py", "loongforge_backends.cpu"),
        ("loongforge_backends/cpu/__init__.py", "loongforge.parallel.layout"),
        ("loongforge/new_room/__init__.py", "loongforge.config"),
    ],
)
def test_breach_is_seen(tmp_path: Path, file: str, imported: str) -> None:
    for source, target in {"loongforge": "loongforge", "backends": "loongforge_backends"}.items():
        shutil.copytree(REPO / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(REPO / "pyproject.toml", tmp_path / "pyproject.toml")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    with (tmp_path / file).open("a") as module:
        module.write(f"\n\ndef _breach() -> None:\n    import {imported}  # lazily counts as well\n")
    linted = _lint(tmp_path)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    assert "BROKEN" in linted.stdout
