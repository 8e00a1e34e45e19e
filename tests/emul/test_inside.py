"""The tests that need torch as the emulator changes it, in a process of their own."""

from __future__ import annotations

import re
from pathlib import Path

from tests.emul.environment import emulated, run


def test_rules_and_adapters(tmp_path: Path) -> None:
    done = run(emulated(tmp_path), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/emul/inside")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found is not None
    assert int(found[1]) > 70


def test_the_emulator_does_not_load_unasked(tmp_path: Path) -> None:
    environ = emulated(tmp_path)
    del environ["LF_KUNLUN_EMULATE"]
    done = run(environ, "-c", "import torch_xmlir")
    assert done.returncode == 1
    assert "emulator for tests" in done.stderr
