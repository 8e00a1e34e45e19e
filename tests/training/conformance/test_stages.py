"""Every stage passes on CPU, and finds the faults that are planted for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loongforge_backends.cpu import CpuBackend

from loongforge.training.conformance import device, kernels
from loongforge.training.conformance.context import Context
from loongforge.training.conformance.outcome import Check
from tests.support.ranks import RankPool


def _context(fault: str = "", folder: Path = Path(), rank: int = 0, world: int = 1) -> Context:
    return Context(CpuBackend(), torch.device("cpu"), folder, rank, world, fault)


def _failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.ok]


@pytest.mark.parametrize(
    ("stage", "fault", "check"),
    [
        (device.device, "arithmetic", "fp32 product"),
        (device.device, "memory", "the peak follows what is held"),
        (device.device, "timer", "the timer agrees with the host's clock"),
        (device.random, "random", "uniform: from the seed"),
    ],
)
def test_device_and_random(stage: Callable[[Context], list[Check]], fault: str, check: str) -> None:
    assert _failed(stage(_context())) == []
    assert check in _failed(stage(_context(fault)))


def test_ops_pass() -> None:
    checks = kernels.kernels(_context())
    assert _failed(checks) == []
    assert {check.name.split("/")[0] for check in checks} >= {
        "attention",
        "linear_cross_entropy",
        "adamw",
        "grouped_gemm",
    }


@pytest.mark.parametrize(
    "fault", ["op:attention", "grad:linear_cross_entropy", "op:moe_permute", "op:adamw", "grad:gelu"]
)
def test_ops_find_faults(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = fault.partition(":")[2]
    monkeypatch.setattr(kernels, "OPS", (op,))
    monkeypatch.setattr(
        kernels, "usable", lambda backend, real=kernels.usable: (i for i in real(backend) if i.op == op)
    )
    failed = _failed(kernels.kernels(_context(fault)))
    assert failed
    assert all(name.startswith(op) for name in failed)
    assert _failed(kernels.kernels(_context())) == []


def _in_world(function: str, fault: str, folder: Path) -> list[str]:
    import importlib

    from loongforge.kernels.backend import select
    from loongforge.parallel.session import joined_world

    backend = select("cpu")
    with joined_world(backend) as world:
        module, _, name = function.partition(":")
        stage = getattr(importlib.import_module(f"loongforge.training.conformance.{module}"), name)
        return _failed(stage(_context(fault, folder, world.rank, world.size)))


@pytest.mark.parametrize(("fault", "caught"), [("", False), ("collective", True)])
def test_collectives(rank_pool: Callable[[int], RankPool], tmp_path: Path, fault: str, caught: bool) -> None:
    for failed in rank_pool(2).run(_in_world, "collectives:collectives", fault, tmp_path):
        assert bool(failed) == caught
        assert all(name.startswith("all_reduce sum") for name in failed)


def test_curve_and_checkpoints(tmp_path: Path) -> None:
    """In fresh processes, as the runner has it: kernels are bound once in each."""

    def failed(function: str, fault: str = "") -> Any:
        with RankPool(1) as pool:
            return pool.run(_in_world, function, fault, tmp_path)[0]

    assert failed("curve:baseline") == []
    assert failed("curve:checkpoint") == []
    assert failed("curve:checkpoint_on_cpu") == []
    assert "losses of 50 steps" in failed("curve:curve", "curve")


def test_a_spoilt_checkpoint_is_found(tmp_path: Path) -> None:
    with RankPool(1) as pool:
        pool.run(_in_world, "curve:baseline", "", tmp_path)
    with RankPool(1) as pool:
        assert pool.run(_in_world, "curve:checkpoint", "checkpoint", tmp_path) == [["its own", "the CPU's"]]
