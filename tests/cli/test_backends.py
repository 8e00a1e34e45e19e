"""`loongforge backends` and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loongforge.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOONGFORGE_CACHE", str(tmp_path))


def test_for_machines(capsys: Capture) -> None:
    assert main(["backends", "--backend", "cpu", "--json"]) == 0
    (cpu,) = json.loads(capsys.readouterr().out)
    assert (cpu["schema"], cpu["name"], cpu["state"], cpu["auto"]) == (1, "cpu", "ok", True)
    assert cpu["versions"]["torch"]
    assert cpu["capabilities"]["fp64"] == {"value": "yes", "source": "documented: torch"}
    norm = next(kernel for kernel in cpu["kernels"] if kernel["op"] == "rms_norm")
    assert (norm["implementation"], norm["evidence"]) == ("torch", "contract")
    assert norm["rejected"] == [{"implementation": "reference", "reason": "torch comes before it"}]


def test_for_people(capsys: Capture) -> None:
    assert main(["backends"]) == 0
    shown = capsys.readouterr().out
    assert "cpu: CPU" in shown and "<- backend=auto" in shown
    assert "rms_norm" in shown and "not on this machine: loongforge backends verify" in shown


def test_strict_wants_measured_kernels(capsys: Capture) -> None:
    assert main(["backends", "--backend", "cpu", "--strict"]) == 3
    assert "strict: rms_norm: torch is not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["backends", "--backend", "cpux"], "Did you mean 'cpu'?"),
        (["backends", "verify", "--only", "opps"], "Did you mean 'ops'?"),
        (["backends", "verify", "--inject", "op:rmsnorm"], "no such fault"),
        (["backends", "verify", "--nproc", "0"], "must be greater than 0"),
        (["backends", "verify", "--backend", "nothing"], "is not installed"),
    ],
)
def test_mistakes_are_the_users(argv: list[str], words: str, capsys: Capture) -> None:
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_verify_reports(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report.json"
    assert main(["backends", "verify", "--only", "random", "--out", str(out)]) == 1  # the others are left out
    assert "random            pass" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert (report["outcome"], report["backend"], report["emulated"]) == ("incomplete", "cpu", False)
