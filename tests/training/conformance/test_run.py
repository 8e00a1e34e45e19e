"""The runner: processes that hang, die, raise or are left out are no pass; a report that passes upgrades kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loongforge_backends.cpu import CpuBackend

from loongforge.kernels.verified import measured
from loongforge.training.conformance import run as module
from loongforge.training.conformance.outcome import Check, StageResult, overall
from loongforge.training.conformance.run import verify
from loongforge.training.conformance.stages import Stage

HERE = "tests.training.conformance.test_run"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOONGFORGE_CACHE", str(tmp_path / "cache"))


def passing(context: Any) -> list[Check]:
    return [Check("ops/torch a", True), Check("ops/fast b", True)]


def failing(context: Any) -> list[Check]:
    return [Check("fine", True), Check.below("figure", float("nan"), 1.0)]


def raising(context: Any) -> list[Check]:
    raise ValueError("what went wrong")


def empty(context: Any) -> list[Check]:
    return []


def _run(monkeypatch: pytest.MonkeyPatch, *stages: Stage, **options: Any) -> dict[str, Any]:
    monkeypatch.setattr(module, "STAGES", stages)
    return verify(CpuBackend(), nproc=2, **options)


def _stage(name: str, function: str, **more: Any) -> Stage:
    return Stage(name, f"{HERE}:{function}", more.pop("seconds", 60), "-", **more)


def test_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    report = _run(
        monkeypatch,
        _stage("ops", "passing", ranks=True),
        _stage("figure", "failing"),
        _stage("after", "passing", after=("figure",)),
        _stage("error", "raising"),
        _stage("nothing", "empty"),
    )
    found = {stage["stage"]: stage for stage in report["stages"]}
    outcomes = {name: stage["outcome"] for name, stage in found.items()}
    assert outcomes == {"ops": "pass", "figure": "fail", "after": "skip", "error": "fail", "nothing": "fail"}
    assert "what went wrong" in found["error"]["message"]
    assert "figure" in found["after"]["message"]
    assert (report["outcome"], "kept" in report) == ("fail", False)
    json.dumps(report, allow_nan=False)


def test_hanging_and_dying(monkeypatch: pytest.MonkeyPatch) -> None:
    report = _run(monkeypatch, _stage("ops", "passing", seconds=12), fault="hang:ops")
    assert report["stages"][0]["outcome"] == "timeout"
    report = _run(monkeypatch, _stage("ops", "passing"), fault="crash:ops")
    assert report["stages"][0]["outcome"] == "crash"
    assert "code -6" in report["stages"][0]["message"]


def test_a_pass_is_kept_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(CpuBackend()) == {}
    report = _run(monkeypatch, _stage("ops", "passing"))
    assert report["outcome"] == "pass"
    assert set(measured(CpuBackend())) == {("ops", "torch"), ("ops", "fast")}
    monkeypatch.setattr(CpuBackend, "versions", lambda self: {"torch": "another"})
    assert measured(CpuBackend()) == {}


def test_what_is_left_out_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    report = _run(monkeypatch, _stage("ops", "passing"), _stage("other", "passing"), only=["ops"])
    assert report["outcome"] == "incomplete"
    assert measured(CpuBackend()) == {}


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [(["pass", "pass"], "pass"), (["pass", "skip"], "incomplete"), (["skip", "timeout"], "fail"), (["crash"], "fail")],
)
def test_overall(outcomes: list[Any], expected: str) -> None:
    assert overall([StageResult("x", outcome, 0.0) for outcome in outcomes]) == expected
