"""How near to the lower bound plans are, on eight kinds of batches; and that faults in the planner are noticed.

Goals are a little above what is reached. docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from loongforge.data.balance import Plan, encode, exchange, lock_step, lower_bound, pipeline, plan, step_time
from loongforge.data.balance.cells import Cells
from loongforge.data.balance.types import Ints
from tests.data.balance.kinds import KINDS, fixed_batch, packed_batch
from tests.data.balance.rules import broken_rules

_STEPS = 4


def _packed_ratio(kind: str, ranks: int, seed: int, cap: float, objective: str) -> float:
    """Step time over lower bound with a cap of so many budgets."""
    batch, _ = packed_batch(kind, ranks, _STEPS, seed)
    shape, token_cap = {"ranks": ranks, "micro_batches": _STEPS}, int(cap * KINDS[kind].budget)
    arguments = {**shape, "cost": KINDS[kind].cost, "objective": objective}
    made = plan(batch, **arguments, token_cap=token_cap)
    assert not broken_rules(made, batch, **shape, token_cap=token_cap)
    return step_time(made, batch, **arguments) / lower_bound(batch, units_free=objective == "one_barrier", **arguments)


def _fixed_ratio(kind: str, ranks: int, seed: int, objective: str) -> float:
    batch = fixed_batch(kind, ranks, 8, seed)
    arguments = {"ranks": ranks, "micro_batches": 1, "cost": KINDS[kind].cost, "objective": objective}
    return step_time(plan(batch, **arguments), batch, **arguments) / lower_bound(batch, **arguments)


def _mean(ratios: Iterable[float]) -> float:
    """Geometric."""
    return math.exp(float(np.mean(np.log(list(ratios)))))


def _packed(ranks: int, cap: float, objective: str, seeds: Iterable[int] = (1,)) -> float:
    return _mean(_packed_ratio(kind, ranks, seed, cap, objective) for kind in KINDS for seed in seeds)


@pytest.mark.parametrize(("cap", "goal"), [(1.2, 1.010), (1.05, 1.020), (1.0, 1.025)])
@pytest.mark.parametrize(("ranks", "seeds"), [(8, (1, 2, 3, 4)), (64, (1,)), (200, (5,))])
def test_lock_step(ranks: int, seeds: tuple[int, ...], cap: float, goal: float) -> None:
    assert _packed(ranks, cap, "lock_step", seeds) <= goal


@pytest.mark.parametrize(("ranks", "seeds"), [(8, (1, 2, 3, 4)), (64, (1,)), (200, (5,))])
def test_one_barrier(ranks: int, seeds: tuple[int, ...]) -> None:
    assert _packed(ranks, 1.2, "one_barrier", seeds) <= 1.001


def test_pipeline() -> None:
    assert _packed(64, 1.2, "pipeline") < 1.05


@pytest.mark.parametrize("objective", ["one_barrier", "lock_step"])
def test_one_micro_batch_without_caps(objective: str) -> None:
    assert _mean(_fixed_ratio(kind, 64, seed, objective) for kind in KINDS for seed in (1, 2)) <= 1.010


def test_bound_is_below_plans_without_balance() -> None:
    """Else every ratio above would be too good."""
    for kind in KINDS:
        batch, packs = packed_batch(kind, 8, _STEPS, seed=1)
        unplanned = Plan(packs // _STEPS, packs % _STEPS, None)
        arguments = {"ranks": 8, "micro_batches": _STEPS, "cost": KINDS[kind].cost, "objective": "lock_step"}
        assert step_time(unplanned, batch, **arguments) > 1.03 * lower_bound(batch, **arguments)


def _nothing(*_: object, **__: object) -> bool:
    return False


def _all_even(problem: lock_step.Problem) -> Cells:
    """As if no sample were heavy, and without looking at costs."""
    return Cells(problem.llm, problem.limits, np.arange(len(problem.llm)) % problem.cells, problem.cells)


def _as_numbered(problem: lock_step.Problem, batch: object, cells: Cells) -> Ints:
    return np.arange(problem.cells) % problem.micro_batches


def _unchanged(cells: Cells, ranks: int, effort: object) -> Cells:
    return cells


def _as_it_is(cells: Cells) -> Cells:
    return cells


def _in_order(costs: Ints, loads: Ints) -> Ints:
    return np.arange(len(costs)) % len(loads)


def _at_home(cells: Cells, level: int, home: Ints) -> Ints:
    return home


@pytest.mark.parametrize(
    ("module", "name", "fault", "cap", "objective"),
    [
        (lock_step, "_levels_filled", _all_even, 1.2, "lock_step"),
        (lock_step, "grouped", _as_numbered, 1.2, "lock_step"),
        (lock_step, "lower_levels", _unchanged, 1.2, "lock_step"),
        (encode, "_polished", _at_home, 1.2, "lock_step"),
        (pipeline, "within_caps", _as_it_is, 1.0, "pipeline"),
        (pipeline, "spread", _in_order, 1.2, "pipeline"),
    ],
    ids=["no levels", "any micro-batch", "levels not lowered", "units stay at home", "caps not kept", "no spreading"],
)
def test_faults_are_noticed(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, fault: Callable[..., object], cap: float, objective: str
) -> None:
    goal = _packed(64, cap, objective) * 1.002
    monkeypatch.setattr(module, name, fault)
    with pytest.raises((AssertionError, ValueError)):
        assert _packed(64, cap, objective) <= goal


@pytest.mark.parametrize("kind", ["tiles", "video"])
def test_exchanges_bring_something(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with_them = _packed_ratio(kind, 32, 3, 1.2, "lock_step")
    monkeypatch.setattr(lock_step, "relieve", _nothing)
    monkeypatch.setattr(encode, "relieve", _nothing)
    assert _packed_ratio(kind, 32, 3, 1.2, "lock_step") > with_them


def _plan_of(kind: str) -> tuple[Plan, dict[str, object]]:
    batch, _ = packed_batch(kind, 8, _STEPS, seed=2)
    cap = KINDS[kind].budget
    limits = {"token_cap": cap, "patch_cap": int(batch.patches().max()) + 4 * cap}
    shape = {"ranks": 8, "micro_batches": _STEPS}
    made = plan(batch, **shape, cost=KINDS[kind].cost, **limits)  # type: ignore[arg-type]
    return made, {"batch": batch, **shape, **limits}


def _changed(values: Ints, where: object, to: int) -> Ints:
    changed = values.copy()
    changed[where] = to  # type: ignore[index]
    return changed


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (lambda made: Plan(made.rank[1:], made.micro_batch, made.encoder_rank), "for each sample"),
        (lambda made: Plan(made.rank, made.micro_batch, made.encoder_rank[1:]), "for each unit"),
        (lambda made: Plan(_changed(made.rank, 0, 8), made.micro_batch, made.encoder_rank), "rank out of range"),
        (lambda made: Plan(made.rank, _changed(made.micro_batch, 0, -1), made.encoder_rank), "micro_batch out of"),
        (lambda made: Plan(_changed(made.rank, made.rank == 3, 2), made.micro_batch, None), "an empty cell"),
        (lambda made: Plan(_changed(made.rank, made.rank == 3, 2), made.micro_batch, None), "more tokens"),
        (lambda made: Plan(_changed(made.rank, made.rank < 4, 2), made.micro_batch, None), "where samples are"),
        (lambda made: Plan(made.rank, made.micro_batch, made.encoder_rank * 0), "where units are encoded"),
    ],
)
def test_wrong_plans_are_noticed(fault: Callable[[Plan], Plan], rule: str) -> None:
    made, case = _plan_of("native")
    assert not broken_rules(made, **case)  # type: ignore[arg-type]
    assert any(rule in found for found in broken_rules(fault(made), **case))  # type: ignore[arg-type]


def test_effort_is_counted_and_not_timed() -> None:
    """An exchange that is weighed costs effort; none left, none made."""
    cells = Cells(np.array([5, 4, 3, 2]), [], np.array([0, 0, 1, 1]), 2)
    assert not exchange.relieve(cells, np.array([7, 7]), exchange.Effort(0))
    assert cells.loads.tolist() == [9, 5]
    effort = exchange.Effort(1000)
    assert exchange.relieve(cells, np.array([7, 7]), effort)
    assert cells.loads.tolist() == [7, 7]
    assert effort.left < 1000
