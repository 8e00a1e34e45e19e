"""The loss that evens out the load of experts is of the whole step: no layout, no micro-batch size and no packing
changes its value or its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loongforge.config.schema import Config, ParallelConfig
from loongforge.training.verify.compare import compare
from loongforge.training.verify.outcome import Outcome
from tests.parallel.cases import train_balanced
from tests.support.ranks import RankPool
from tests.support.tiny import tiny_config

if TYPE_CHECKING:
    from loongforge.model.balance import ExpertBalance

Pools = Callable[[int], RankPool]
STEPS = 3
MOE = dict(num_experts=8, router_aux_loss_coef=0.5)
MIXED = dict(num_experts=4, dense_layers=[0], router_aux_loss_coef=0.5)
APART = dict(parallel=ParallelConfig(ep=2, ranks=[2, 3]), vision_changes={"parallel": ParallelConfig(ranks=[0, 1])})
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one micro-batch": (1, MOE | dict(size=8)),
    "one process, packed": (1, MOE | dict(pack=True)),
    "dp2 ep2": (2, MOE | dict(parallel=ParallelConfig(ep=2))),
    "dp2 ep2, one micro-batch, packed": (2, MOE | dict(parallel=ParallelConfig(ep=2), size=4, pack=True)),
    "cp2": (2, MOE | dict(parallel=ParallelConfig(cp=2))),
    "cp2, one micro-batch": (2, MOE | dict(parallel=ParallelConfig(cp=2), size=8)),
    "tp2 sp dp2 distributed": (
        4,
        MOE | dict(parallel=ParallelConfig(tp=2, sequence_parallel=True), distributed=True),
    ),
    "pp2 ep2, layers of two kinds": (4, MIXED | dict(parallel=ParallelConfig(pp=2, ep=2))),
    "pp2, one micro-batch": (2, MIXED | dict(parallel=ParallelConfig(pp=2), size=8)),
    "an encoder of its own ranks": (4, MOE | APART),
}


def _config(options: dict[str, Any]) -> tuple[Config, bool]:
    rest = dict(options)
    size, pack = rest.pop("size", 2), rest.pop("pack", False)
    config = tiny_config(**rest)
    config.trainer.steps, config.trainer.micro_batch_size = STEPS, size
    return config, pack


@pytest.fixture(scope="module")
def one_process(rank_pool: Pools) -> Callable[..., tuple[Outcome, ExpertBalance]]:
    """Of a model, computed once: in micro-batches of two."""
    known: dict[str, tuple[Outcome, ExpertBalance]] = {}

    def reference(options: dict[str, Any]) -> tuple[Outcome, ExpertBalance]:
        model = {key: value for key, value in options.items() if key in MOE | MIXED}
        if repr(model) not in known:
            known[repr(model)] = rank_pool(1).run(train_balanced, _config(model)[0])[0]
        return known[repr(model)]

    return reference


def _problems(options: dict[str, Any], nproc: int, one_process: Any, pools: Pools, fault: str = "") -> list[str]:
    expected, load = one_process(options)
    config, pack = _config(options)
    ranks = pools(nproc).run(train_balanced, config, fault, pack)
    found = compare(expected, [outcome for outcome, _ in ranks]).problems
    for _, own in ranks:
        if abs(own.loss - load.loss) > 1e-5 or abs(own.imbalance - load.imbalance) > 1e-9:
            found.append(f"{own} is not {load}")
    return found


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(name: str, one_process: Any, rank_pool: Pools) -> None:
    nproc, options = CASES[name]
    assert not _problems(options, nproc, one_process, rank_pool)


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("loads of a replica", "dp2 ep2"),
        ("loads of a replica", "cp2, one micro-batch"),
        ("loads of a replica", "pp2, one micro-batch"),
        ("loads of a micro-batch", "dp2 ep2"),
        ("padding counts", "one process, packed"),
    ],
)
def test_a_fault_is_seen(fault: str, name: str, one_process: Any, rank_pool: Pools) -> None:
    nproc, options = CASES[name]
    assert _problems(options, nproc, one_process, rank_pool, fault)
