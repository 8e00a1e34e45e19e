"""What native libraries print stays out of the stdout that other programs read."""

from __future__ import annotations

import subprocess
import sys

_PRINTS = """
import os
from loongforge.parallel.native_output import native_output_on_stderr

@native_output_on_stderr()
def connect():
    os.write(1, b"native")  # as C++ does, past Python's stdout

print("before")
connect()
print("after")
"""
_CONNECTS = """
import torch.distributed as dist
from loongforge.kernels.backend import select
backend = select("cpu")
backend.activate()
from loongforge.parallel.grid import Grid
from loongforge.parallel.layout import Layout
from loongforge.parallel.groups import make_groups
from loongforge.parallel.session import joined_world
with joined_world(backend):
    make_groups(Layout(1, Grid((0,), 1, 1, 1)), "gloo")
    print("answer")
"""


def _run(code: str, *, closed: bool = False) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", 'exec "$@" >&-', "sh"] if closed else []
    command += [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_stdout_is_python_alone() -> None:
    ran = _run(_PRINTS)
    assert (ran.returncode, ran.stdout) == (0, "before\nafter\n"), ran.stderr
    assert "native" in ran.stderr


def test_a_closed_stdout_is_no_failure() -> None:
    assert _run(_PRINTS.replace('os.write(1, b"native")', "pass"), closed=True).returncode == 0


def test_groups_print_nothing_on_stdout() -> None:
    """Fails without the redirection with torch 2.9, whose gloo reports each connection."""
    ran = _run(_CONNECTS)
    assert (ran.returncode, ran.stdout) == (0, "answer\n"), ran.stderr
