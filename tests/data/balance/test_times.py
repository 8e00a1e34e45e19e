"""Step times and lower bounds on cases small enough to do by hand."""

from __future__ import annotations

import numpy as np
import pytest

from loongforge.data.balance import BatchMetadata, CostModel, Plan, lower_bound, step_time

# Language model: 1 ms per token and 0.1 ms per token squared. A unit of p patches: 2 (p + 1) + 5 ms.
_COST = CostModel(vision_linear=2, vision_per_unit=5, vision_extra_patches=1, llm_linear=1, llm_quadratic=0.1)
# Samples of 10, 20, 0 + 10 and 3 + 7 tokens: 20, 60, 20, 20 ms. The third has 2 units of 4 patches (15 ms each), the
# fourth an image of one unit of 14 (35 ms).
_BATCH = BatchMetadata([10, 20, 0, 3], [0, 0, 0, 1, 2], [2, 1], [4, 14], [10, 7])
_PLAN = Plan(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), None)
_SHAPE = {"ranks": 2, "micro_batches": 2, "cost": _COST}


def test_costs_by_hand() -> None:
    assert _COST.documents(np.array([10, 20])).tolist() == [20, 60]
    assert _COST.units(np.array([4, 14])).tolist() == [15, 35]
    assert _BATCH.tokens().tolist() == [10, 20, 10, 10]
    assert _BATCH.patches().tolist() == [0, 0, 8, 14]


@pytest.mark.parametrize(
    ("objective", "encoder_rank", "expected"),
    [
        ("one_barrier", None, 60 + 55),  # rank 1: 60, then 20 + 35
        ("one_barrier", [1, 1, 1], 60 + 20 + 65),
        ("lock_step", None, (0 + 60) + (35 + 20)),
        ("lock_step", [0, 0, 0], (0 + 60) + (65 + 20)),
        ("lock_step", [1, 0, 1], (0 + 60) + (50 + 20)),
        ("pipeline", None, (115 + 3 * 60) / 4),
    ],
)
def test_step_time(objective: str, encoder_rank: list[int] | None, expected: float) -> None:
    encoders = None if encoder_rank is None else np.array(encoder_rank)
    made = Plan(_PLAN.rank, _PLAN.micro_batch, encoders)
    assert step_time(made, _BATCH, objective=objective, **_SHAPE) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("objective", "units_free", "ranks", "expected"),
    [
        ("one_barrier", False, 1, 120 + 65),
        ("one_barrier", False, 2, 55 + 50),  # samples of 60, 55, 50, 20 ms: of the first three two share a rank
        ("one_barrier", False, 3, 50 + 20),
        ("one_barrier", True, 2, (120 + 65) / 2),
        ("one_barrier", True, 4, 60),  # the heaviest document
        ("lock_step", False, 2, 35 + 60),  # the heaviest unit, the heaviest document: 120 / 2
        ("lock_step", False, 1, 65 + 120),
        ("pipeline", False, 1, (185 + 3 * 185 / 2) / 4),
        ("pipeline", False, 8, 60),
    ],
)
def test_lower_bound(objective: str, units_free: bool, ranks: int, expected: float) -> None:
    shape = {**_SHAPE, "ranks": ranks}
    assert lower_bound(_BATCH, objective=objective, units_free=units_free, **shape) == pytest.approx(expected)


def test_bound_of_several_samples_per_rank() -> None:
    equal = BatchMetadata([10] * 7, [0] * 8, [], [], [])
    assert lower_bound(equal, objective="one_barrier", **_SHAPE) == pytest.approx(4 * 20)


@pytest.mark.parametrize("objective", ["one_barrier", "lock_step", "pipeline"])
def test_nothing_takes_no_time(objective: str) -> None:
    empty = BatchMetadata([], [0], [], [], [])
    none = np.zeros(0, np.int64)
    assert lower_bound(empty, objective=objective, **_SHAPE) == 0
    assert step_time(Plan(none, none, none), empty, objective=objective, **_SHAPE) == 0


def test_unknown_objective() -> None:
    with pytest.raises(ValueError, match="'fsdp' is none of one_barrier, lock_step, pipeline"):
        lower_bound(_BATCH, objective="fsdp", **_SHAPE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([1, 2], [0, 0], [], [], []), "image_offsets has 2 entries for 2 samples"),
        (([1, 2], [0, 2, 1], [1], [1], [1]), "must rise from 0 to the number of images"),
        (([1], [0, 1], [1], [1], []), "one entry per image"),
        (([-1], [0, 0], [], [], []), "text_tokens must hold whole numbers"),
        (([1.5], [0, 0], [], [], []), "text_tokens must hold whole numbers"),
        (([[1]], [0, 0], [], [], []), "one dimension"),
    ],
)
def test_metadata_that_does_not_fit(columns: tuple[list[int], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchMetadata(*columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_cost_that_cannot_be(value: float) -> None:
    with pytest.raises(ValueError, match="llm_linear must be a finite number"):
        CostModel(llm_linear=value)


def test_digest_tells_plans_apart() -> None:
    other = Plan(_PLAN.rank, _PLAN.micro_batch[::-1].copy(), None)
    assert _PLAN.digest() == Plan(_PLAN.rank.copy(), _PLAN.micro_batch, None).digest()
    assert (
        len({_PLAN.digest(), other.digest(), Plan(_PLAN.rank, _PLAN.micro_batch, np.zeros(0, np.int64)).digest()}) == 3
    )
