"""What `scripts/test_pythons.sh` and CI report of other Pythons: a stage that did not run never reads as passed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import loongforge_backends
import pytest
import torch

from tests.repo.files import REPO

# Stands for the Python of an environment: it looks at what fits, counts workers, makes environments, runs pytest.
_STUB = """#!/bin/sh
case "$1 $2" in
  "- "*) cat >/dev/null; echo "its torch is 1.0"; exit {misfit} ;;
  "-c "*) echo 2 ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "installs $*"; exit {pip} ;;
  "-m pytest") echo "ran $*"; echo "{counts}"; exit {status} ;;
esac
"""


def _stub(file: Path, counts: str = "7 passed", status: int = 0, misfit: int = 0, pip: int = 0) -> None:
    _program(file, _STUB.format(counts=counts, status=status, misfit=misfit, pip=pip))


def _program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def _run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The stages of two Pythons with no interpreter but those in `folder/bin`."""
    environment = {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "HOME": str(folder),
        "PYENV_ROOT": str(folder),
        "ENVS": str(folder),
        "STAGES": "3.98:2.9.0 3.99:2.13.0",
        **variables,
    }
    command = ["bash", str(REPO / "scripts" / "test_pythons.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=folder)


def test_all_passed(tmp_path: Path) -> None:
    for version in ("3.98", "3.99"):
        _stub(tmp_path / f"py{version}" / "bin" / "python", f"{version[2:]} passed, 1 skipped")
    ran = _run(tmp_path, "tests/config", "-k", "override")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed:  Python 3.98, torch 2.9.0: 98 passed, 1 skipped" in ran.stdout
    assert "passed:  Python 3.99, torch 2.13.0: 99 passed, 1 skipped" in ran.stdout
    assert ran.stdout.count("tests/config -k override") == 2


@pytest.mark.parametrize("status", [1, 5])  # 5: pytest found no test
def test_one_failed(tmp_path: Path, status: int) -> None:
    _stub(tmp_path / "py3.98" / "bin" / "python", "2 failed, 5 passed", status=status)
    _stub(tmp_path / "py3.99" / "bin" / "python")
    ran = _run(tmp_path)
    assert ran.returncode == 1
    assert "FAILED:  Python 3.98, torch 2.9.0: 2 failed, 5 passed" in ran.stdout
    assert "passed:  Python 3.99" in ran.stdout


def test_nothing_but_skipped_tests_is_no_pass(tmp_path: Path) -> None:
    _stub(tmp_path / "py3.98" / "bin" / "python", "5 skipped in 0.10s")
    _stub(tmp_path / "py3.99" / "bin" / "python")
    ran = _run(tmp_path)
    assert ran.returncode == 3
    assert "SKIPPED, not tested: Python 3.98, torch 2.9.0: 5 skipped" in ran.stdout
    assert "passed:  Python 3.99" in ran.stdout


def test_skips_say_why(tmp_path: Path) -> None:
    _stub(tmp_path / "py3.98" / "bin" / "python", misfit=1)
    _stub(tmp_path / "bin" / "python3.98")
    ran = _run(tmp_path)
    assert ran.returncode == 3
    assert "SKIPPED, not tested: Python 3.98, torch 2.9.0: its torch is 1.0 (MAKE=1 installs it)" in ran.stdout
    assert "SKIPPED, not tested: Python 3.99, torch 2.13.0: no interpreter of that version here" in ran.stdout
    assert "passed: " not in ran.stdout


def test_a_skip_beside_a_pass_is_no_pass(tmp_path: Path) -> None:
    _stub(tmp_path / "py3.98" / "bin" / "python")
    assert _run(tmp_path).returncode == 3


def test_no_stage_is_no_pass(tmp_path: Path) -> None:
    assert _run(tmp_path, STAGES=" ").returncode == 3


@pytest.mark.parametrize(("broken", "code"), [({}, 0), ({"pip": 1}, 1), ({"misfit": 1}, 1)])
def test_make_installs_or_fails(tmp_path: Path, broken: dict[str, int], code: int) -> None:
    _stub(tmp_path / "bin" / "python3.98", **broken)
    ran = _run(tmp_path, STAGES="3.98:2.9.0", MAKE="1")
    assert ran.returncode == code, ran.stdout + ran.stderr
    assert "torch==2.9.0" in ran.stdout
    assert ("passed: " in ran.stdout) == (code == 0)


def test_an_environment_of_this_python_fits(tmp_path: Path) -> None:
    """The look at an environment is real here: this one's versions fit, and others do not."""
    version, found = "{}.{}".format(*sys.version_info), torch.__version__.split("+")[0]
    stub = f'#!/bin/sh\ncase "$1 $2" in "-m pytest") echo "1 passed" ;; *) exec {sys.executable} "$@" ;; esac\n'
    for name in (f"py{version}/bin/python", f"bin/python{version}"):
        _program(tmp_path / name, stub)
    fits = _run(tmp_path, STAGES=f"{version}:{found}")
    if Path(loongforge_backends.__path__[0]).resolve() == REPO / "backends":
        assert fits.returncode == 0, fits.stdout + fits.stderr
    else:  # the tests run in one checkout with the environment of another
        assert "made for another checkout" in fits.stdout
    other = _run(tmp_path, STAGES=f"{version}:2.0.0")
    assert other.returncode == 3
    assert f"its torch is {found} (MAKE=1 installs it)" in other.stdout


@pytest.mark.parametrize(
    ("stages", "status", "code"), [("3.98:2.9.0", 0, 0), ("3.98:2.9.0 3.99:2.13.0", 0, 0), ("3.98:2.9.0", 1, 1)]
)
def test_ci_ends_with_what_did_not_run(tmp_path: Path, stages: str, status: int, code: int) -> None:
    """CI goes on where a stage was skipped, and says so last; it fails where one failed."""
    for name in (".ci/run", "scripts/test_pythons.sh", "scripts/_venv.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    (tmp_path / "scripts" / "test.sh").write_text("echo all tests\n")
    _stub(tmp_path / "py3.98" / "bin" / "python", status=status)
    environment = {**os.environ, "PYENV_ROOT": str(tmp_path), "ENVS": str(tmp_path), "STAGES": stages}
    ran = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == code, ran.stdout + ran.stderr
    last = ran.stdout.splitlines()[-1]
    assert last.startswith("SKIPPED, not tested: Python 3.99") if "3.99" in stages else "3.98" in last
