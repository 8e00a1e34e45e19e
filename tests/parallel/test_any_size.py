"""Images that differ in size under many layouts equal one process, padded and packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loongforge.config.schema import Config, ParallelConfig
from loongforge.training.verify.compare import compare
from loongforge.training.verify.outcome import Outcome
from tests.parallel.cases import train
from tests.support.qwen import qwen_config
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]

LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "tp2": (2, dict(tp=2), {}, {}),
    "dp2": (2, {}, {}, {}),
    "pp2": (2, dict(pp=2), {}, {}),
    "cp2": (2, dict(cp=2), {}, {}),
    "tp2 sp, encoders of their own": (2, dict(tp=2, sequence_parallel=True), dict(tp=1), {}),
    "encoder on its own rank": (3, dict(tp=2, ranks=[0, 1]), dict(ranks=[2]), {}),
    "encoder tp2 for two replicas": (4, dict(tp=2), dict(tp=4), dict(tp=2)),
    "decoupled tp2, pipeline": (4, dict(pp=2, ranks=[0, 1]), dict(ranks=[2, 3], tp=2), dict(tp=1)),
}


def _config(kind: str, layout: str | None = None) -> Config:
    config = qwen_config(kind)
    config.trainer.steps, config.trainer.global_batch_size, config.trainer.micro_batch_size = 6, 8, 2
    parts = LAYOUTS[layout][1:] if layout is not None else ({}, {}, {})
    for name, options in zip(("llm", "vision", "projector"), parts, strict=True):
        getattr(config.model, name).parallel = ParallelConfig(**options)
    return config


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[[str], Outcome]]:
    """The reference of each kind of model, padded."""
    known: dict[str, Outcome] = {}
    with RankPool(1) as pool:

        def reference(kind: str) -> Outcome:
            if kind not in known:
                known[kind] = pool.run(train, _config(kind))[0]
            return known[kind]

        yield reference


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_process(layout: str, one_process: Callable[[str], Outcome], rank_pool: Pools) -> None:
    kind = ("qwen2", "qwen2_5")[list(LAYOUTS).index(layout) % 2]
    ranks = rank_pool(LAYOUTS[layout][0]).run(train, _config(kind, layout))
    assert not compare(one_process(kind), ranks).problems


@pytest.mark.parametrize("layout", ["dp2", "cp2", "encoder tp2 for two replicas"])
def test_packed_equals_padded(layout: str, one_process: Callable[[str], Outcome], rank_pool: Pools) -> None:
    ranks = rank_pool(LAYOUTS[layout][0]).run(train, _config("qwen2_5", layout), "", True)
    assert not compare(one_process("qwen2_5"), ranks).problems


@pytest.mark.parametrize("fault", ["missing reduction", "lost rows"])
def test_a_fault_is_seen(fault: str, one_process: Callable[[str], Outcome], rank_pool: Pools) -> None:
    ranks = rank_pool(2).run(train, _config("qwen2", "dp2"), fault)
    assert compare(one_process("qwen2"), ranks).problems
