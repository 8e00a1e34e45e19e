"""Experts that all tokens take, and experts that none takes, under any layout: the numbers of one process, and
gradients of zero for what was not used."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np
import pytest

from loongforge.config.schema import Config, LoraConfig, ParallelConfig
from loongforge.training.verify.compare import compare
from loongforge.training.verify.outcome import Outcome
from tests.parallel.cases import train
from tests.support.ranks import RankPool
from tests.support.tiny import tiny_config

Pools = Callable[[int], RankPool]
STEPS = 3
ROUTERS = ["first experts only", "last experts only"]
APART = {"vision_changes": {"parallel": ParallelConfig(ranks=[0, 1])}}
ONE = dict(num_experts=4, experts_per_token=1, norm_expert_weights=False)
ALL = dict(num_experts=4, experts_per_token=4, norm_expert_weights=False)
MOE = dict(num_experts=8)
ADAPTED = MOE | dict(lora=LoraConfig(rank=2))
CASES: dict[str, tuple[int, ParallelConfig, dict[str, Any]]] = {
    "ep2": (2, ParallelConfig(ep=2), MOE | dict(norm_expert_weights=False)),
    "ep4, one expert a token": (4, ParallelConfig(ep=4), ONE | dict(distributed=True)),
    "tp2 sp ep2": (4, ParallelConfig(tp=2, ep=2, sequence_parallel=True), MOE),
    "ep2, an encoder of its own ranks": (4, ParallelConfig(ep=2, ranks=[2, 3]), MOE | APART),
    "ep2, adapters": (2, ParallelConfig(ep=2), ADAPTED),
    "tp2 ep2, adapters": (4, ParallelConfig(tp=2, ep=2), ADAPTED),
}
FREE: dict[str, tuple[int, ParallelConfig, dict[str, Any]]] = {
    "ep4, one expert a token": (4, ParallelConfig(ep=4), ONE),
    "ep2, every expert": (2, ParallelConfig(ep=2), ALL),
    "tp2 ep2, weights as they are": (4, ParallelConfig(tp=2, ep=2), MOE | dict(norm_expert_weights=False)),
    "ep2, an encoder of its own ranks": (4, ParallelConfig(ep=2, ranks=[2, 3]), MOE | APART),
}


def _config(options: dict[str, Any], parallel: ParallelConfig | None = None) -> Config:
    config = tiny_config(parallel=parallel, **options)
    config.trainer.steps = STEPS
    return config


def _one_process(options: dict[str, Any], pools: Pools, router: str) -> Outcome:
    model = {key: value for key, value in options.items() if key not in ("distributed", *APART)}
    return pools(1).run(train, _config(model), router)[0]


@pytest.mark.parametrize(("name", "router"), list(zip(CASES, cycle(ROUTERS), strict=False)))
def test_unused_experts(name: str, router: str, rank_pool: Pools) -> None:
    nproc, parallel, options = CASES[name]
    reference = _one_process(options, rank_pool, router)
    ranks = rank_pool(nproc).run(train, _config(options, parallel), router)
    assert not compare(reference, ranks).problems
    number, taken = options["num_experts"], options.get("experts_per_token", 2)
    used = range(taken) if router == ROUTERS[0] else range(number - taken, number)
    for rank in ranks:
        for parameter, gradient in rank.gradients.items():
            if ".experts." in parameter:
                is_used = int(parameter.split(".experts.")[1].split(".")[0]) in used
                # adapters begin with a B of zeros, so their A has no gradient yet
                assert np.any(gradient) == (is_used and not parameter.endswith("lora.a")), parameter


@pytest.mark.parametrize("name", FREE)
def test_other_numbers_of_experts(name: str, rank_pool: Pools) -> None:
    nproc, parallel, options = FREE[name]
    reference = _one_process(options, rank_pool, "")
    assert not compare(reference, rank_pool(nproc).run(train, _config(options, parallel))).problems
