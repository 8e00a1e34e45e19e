"""Kunlun's detection without its software: the order of the questions, refusals and advice."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loongforge_backends.kunlun import detect as module
from loongforge_backends.kunlun.environment import advice, refusals

_detect = module.detect


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, "torch_xmlir", SimpleNamespace(__version__={}))  # type: ignore[arg-type]


def test_nothing_speaks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "signs", list)
    found = _detect({})
    assert (found.state, found.usable, found.silent) == ("absent", False, True)


def test_hardware_without_software_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "signs", lambda: ["/dev/xpu0"])
    found = _detect({})
    assert (found.state, found.usable, found.silent) == ("broken", False, False)
    assert "install XPyTorch" in found.why_not()


@pytest.mark.usefixtures("_installed")
def test_a_package_that_changed_nothing_is_no_backend() -> None:
    found = _detect({})
    assert found.state == "broken"
    assert "has not taken over torch" in found.why_not()


@pytest.mark.usefixtures("_installed")
def test_patched_but_no_device_and_then_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "traces", lambda torch: iter(["a trace"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _detect({}).state == "no_device"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "GPU")
    found = _detect({})
    assert (found.state, found.usable) == ("ok", True)
    assert '8 x "GPU"' in found.evidence


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"XPU_RUN_MODE": "TRAIN"}, "hardware registers"),
        ({"XTORCHRUN_CLEAN": "1"}, "kills every process"),
        ({"XMLIR_DISABLE_CUDA_ALLOCATOR": "1"}, "allocator"),
        ({"DISABLE_XPYTORCH": "1"}, "leaves torch as it is"),
        ({"XPU_EVENT_KL3_ENABLE": "1", "WORLD_SIZE": "8"}, "16 of 18"),
    ],
)
@pytest.mark.usefixtures("_installed")
def test_refused(environ: dict[str, str], words: str) -> None:
    found = _detect(environ)
    assert (found.state, found.usable) == ("broken", False)
    assert words in found.why_not()
    assert "unset" in found.problems[0].fix


@pytest.mark.parametrize(
    "environ",
    [
        {"XTORCHRUN_CLEAN": "0"},
        {"XMLIR_DISABLE_CUDA_ALLOCATOR": "true"},  # as a vendor's scripts have it, without effect
        {"XPU_EVENT_KL3_ENABLE": "1"},
        {"XPU_EVENT_KL3_ENABLE": "1", "WORLD_SIZE": "8", "LOONGFORGE_KUNLUN_ALLOW_KL3_EVENTS": "1"},
        {"XPU_EVENT_KL3_ENABLE": "0", "WORLD_SIZE": "8"},
    ],
)
def test_not_refused(environ: dict[str, str]) -> None:
    assert not list(refusals(environ))


def test_advice_goes_away_when_it_is_taken() -> None:
    texts = [problem.text for problem in advice({"XPU_VISIBLE_DEVICES": "0"})]
    assert len(texts) == 3
    taken: dict[str, Any] = {
        "LD_LIBRARY_PATH": "/opt/xcudart/lib",
        "XMLIR_ENABLE_FALLBACK_TO_CPU_BOOL": "False",
        "XMLIR_DUMP_FALLBACK_OP_LIST_BOOL": "true",
        "XMLIR_XDNN_PYTORCH_CHECK_ENABLE_FALLBACK_BOOL": "0",
    }
    assert not list(advice(taken))
    assert not any(problem.fatal for problem in advice({}))
