"""Layers of experts under any layout equal one process; their checkpoints are read under any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loongforge.config.schema import Config, LoraConfig, ParallelConfig
from loongforge.training.verify.compare import compare
from loongforge.training.verify.outcome import Outcome
from tests.parallel.cases import train, train_between
from tests.support.ranks import RankPool
from tests.support.tiny import tiny_config

Pools = Callable[[int], RankPool]
STEPS = 6
MOE = dict(num_experts=8)
MIXED = dict(num_experts=4, dense_layers=[0], expert_layer_step=1, tie_embeddings=True)
# rank 3 and a rate of its own; gate and up projection of some experts, the down projection of all in one layer
ADAPTED = MOE | dict(lora=LoraConfig(rank=3, alpha=7.0, lr_scale=2.0))
SOME = MIXED | dict(
    lora=LoraConfig(rank=2, targets=["experts.1.gate_proj", "experts.2.*", "layers.3.mlp.experts.*.down_proj"])
)
CASES: dict[str, tuple[int, ParallelConfig, dict[str, Any]]] = {
    "ep2": (2, ParallelConfig(ep=2), MOE),
    "ep2, each expert twice, distributed": (4, ParallelConfig(ep=2), MOE | dict(distributed=True)),
    "ep4": (4, ParallelConfig(ep=4), MOE),
    "tp2": (2, ParallelConfig(tp=2), MOE),
    "tp2 ep2": (4, ParallelConfig(tp=2, ep=2), MOE),
    "tp2 sp ep2 distributed": (4, ParallelConfig(tp=2, ep=2, sequence_parallel=True), MOE | dict(distributed=True)),
    "pp2 ep2, layers of two kinds": (4, ParallelConfig(pp=2, ep=2), MIXED),
    "cp2 ep2": (2, ParallelConfig(cp=2, ep=2), MOE),
    "cp2 ep4": (4, ParallelConfig(cp=2, ep=4), MOE),
    "adapters, ep2, each expert twice": (4, ParallelConfig(ep=2), ADAPTED | dict(distributed=True)),
    "adapters, tp2": (2, ParallelConfig(tp=2), ADAPTED),
    "adapters, tp2 sp ep2": (4, ParallelConfig(tp=2, ep=2, sequence_parallel=True), ADAPTED),
    "some adapters, pp2 ep2": (4, ParallelConfig(pp=2, ep=2), SOME),
    "some adapters, ep4": (4, ParallelConfig(ep=4), SOME | dict(distributed=True)),
}


def _config(steps: int, parallel: ParallelConfig | None = None, **options: Any) -> Config:
    config = tiny_config(parallel=parallel, **options)
    config.trainer.steps = steps
    return config


@pytest.fixture(scope="module")
def one_process(rank_pool: Pools) -> Callable[..., Outcome]:
    """The reference of a configuration, computed once."""
    known: dict[str, Outcome] = {}

    def reference(**options: Any) -> Outcome:
        key = repr(sorted(options.items()))
        if key not in known:
            known[key] = rank_pool(1).run(train, _config(STEPS, **options))[0]
        return known[key]

    return reference


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(name: str, one_process: Callable[..., Outcome], rank_pool: Pools) -> None:
    nproc, parallel, options = CASES[name]
    reference = one_process(**{key: value for key, value in options.items() if key != "distributed"})
    ranks = rank_pool(nproc).run(train, _config(STEPS, parallel, **options))
    assert not compare(reference, ranks).problems


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("experts of all ranks", "ep2"),
        ("part of the router", "tp2"),
        ("experts' adapters in parts", "adapters, tp2"),
        ("experts' adapters as dense ones", "adapters, tp2"),
    ],
)
def test_a_fault_is_seen(fault: str, name: str, one_process: Callable[..., Outcome], rank_pool: Pools) -> None:
    """Gradients of different experts added up; each tensor-parallel rank's part of the router's gradient, or of an
    adapter's, alone; sums over the ranks inside of an expert's adapter."""
    nproc, parallel, options = CASES[name]
    ranks = rank_pool(nproc).run(train, _config(STEPS, parallel, **options), fault)
    assert compare(one_process(**options), ranks).problems


def _with_dropout(rank_pool: Pools, fault: str = "") -> Outcome:
    """The encoder's shards are on ranks that hold different experts, and see different numbers of rows for them."""
    config = _config(3, ParallelConfig(ep=2), num_experts=8, lora=LoraConfig(rank=2, dropout=0.4))
    vision = config.model.vision
    assert vision is not None
    vision.lora, vision.parallel = LoraConfig(rank=2, dropout=0.4), ParallelConfig(tp=2)
    return rank_pool(2).run(train, config, fault)[0]


def test_dropout_leaves_replicas_the_same(rank_pool: Pools) -> None:
    assert not _with_dropout(rank_pool, "first experts only").differing


def test_experts_that_draw_with_others_are_seen(rank_pool: Pools) -> None:
    assert _with_dropout(rank_pool, "experts draw with others").differing


CHAIN: list[tuple[int, ParallelConfig]] = [
    (1, ParallelConfig()),
    (4, ParallelConfig(tp=2, ep=2)),
    (4, ParallelConfig(pp=2, ep=2)),
    (4, ParallelConfig(ep=4)),
    (2, ParallelConfig(tp=2)),
    (1, ParallelConfig()),
]


@pytest.mark.parametrize(
    "options",
    [MOE | dict(distributed=True), MIXED, ADAPTED | dict(distributed=True), SOME],
    ids=["distributed", "layers of two kinds", "adapters", "adapters of some experts alone"],
)
def test_a_chain_of_layouts_is_one_run(options: dict[str, Any], rank_pool: Pools, tmp_path: Path) -> None:
    each = 2
    total = each * len(CHAIN)
    whole, _ = rank_pool(1).run(train_between, _config(total, **options), range(total), None, None)[0]
    losses: list[float] = []
    stored: dict[str, Any] = {}
    load = None
    for number, (nproc, parallel) in enumerate(CHAIN):
        save = tmp_path / str(number)
        save.mkdir()
        steps = range(each * number, each * (number + 1))
        ranks = rank_pool(nproc).run(train_between, _config(total, parallel, **options), steps, load, save)
        loaded = {name: value for _, part in ranks for name, value in part.items()}
        for name, value in stored.items():
            assert np.array_equal(loaded[name], value), f"{name}, read under {parallel}"
        losses += ranks[0][0].losses
        stored, load = {name: value for rank, _ in ranks for name, value in rank.parameters.items()}, save
    assert np.abs(np.array(losses) - whole.losses).max() < 2e-5
