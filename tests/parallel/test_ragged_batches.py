"""Hundreds of random steps: nothing hangs, every loss is finite, the same on every rank, and that of one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from loongforge.config.schema import Config
from loongforge.training.verify.compare import LOSS
from tests.parallel.matrix import Choice, layouts, matrix_config
from tests.parallel.ragged_cases import KINDS, RaggedStep, train_ragged
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
STEPS, SLOW_STEPS = 40, 25
NORM = 1e-4


def _choice(llm: dict[str, Any], vision: dict[str, Any], **projector: Any) -> Choice:
    return Choice(4, tuple(llm.items()), tuple(vision.items()), tuple(projector.items()))


CASES: dict[str, tuple[Choice, dict[str, Any]]] = {
    "decoupled tp2 and sp": (_choice(dict(tp=2, sequence_parallel=True), dict(ranks=(2, 3))), {}),
    "one encoder for dp3, packed": (_choice({}, dict(ranks=(3,))), dict(pack=True)),
    "cp2, packed": (_choice(dict(cp=2), dict(tp=2), tp=1), dict(pack=True, distributed=True)),
    "pp2, an encoder of all ranks": (_choice(dict(pp=2), dict(tp=4)), dict(distributed=True)),
    "pp2 tp2, encoders on the first stage": (
        _choice(dict(tp=2, pp=2, ranks=(0, 1, 2, 3)), dict(ranks=(0, 1))),
        dict(window=2, frozen=("vision",)),
    ),
}


def _config(distributed: bool = False, window: int | None = None, frozen: tuple[str, ...] = ()) -> Config:
    config = matrix_config(distributed=distributed)
    config.trainer.encode_window = window
    for name in frozen:
        getattr(config.model, name).freeze = True
    return config


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[..., list[tuple[float, float]]]]:
    """Losses and norms of one process that takes each step as one batch."""
    known: dict[Any, list[tuple[float, float]]] = {}
    with RankPool(1) as pool:

        def of(seed: int, steps: int, dp: int, frozen: tuple[str, ...]) -> list[tuple[float, float]]:
            key = (seed, steps, dp, frozen)
            if key not in known:
                known[key] = pool.run(train_ragged, _config(frozen=frozen), seed, steps, dp)[0]
            return known[key]

        yield of


def _check(choice: Choice, options: dict[str, Any], seed: int, steps: int, one_process: Any, pools: Pools) -> None:
    options, dp = dict(options), choice.layout().dp
    pack = options.pop("pack", False)
    ranks = pools(4).run(train_ragged, choice.apply(_config(**options)), seed, steps, dp, pack)
    assert all(math.isfinite(value) for step in ranks[0] for value in step)
    assert all(found == ranks[0] for found in ranks)
    expected = one_process(seed, steps, dp, options.get("frozen", ()))
    assert [loss for loss, _ in ranks[0]] == pytest.approx([loss for loss, _ in expected], rel=0, abs=LOSS)
    assert [norm for _, norm in ranks[0]] == pytest.approx([norm for _, norm in expected], rel=NORM)


@pytest.mark.parametrize("name", CASES)
def test_ragged_steps_equal_one_process(name: str, one_process: Any, rank_pool: Pools) -> None:
    choice, options = CASES[name]
    _check(choice, options, 1000 * (1 + list(CASES).index(name)), STEPS, one_process, rank_pool)


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("choice", layouts(4), ids=str)
def test_ragged_steps_under_every_layout(choice: Choice, pack: bool, one_process: Any, rank_pool: Pools) -> None:
    _check(choice, dict(pack=pack), 17, SLOW_STEPS, one_process, rank_pool)


def test_the_steps_are_as_ragged_as_they_claim() -> None:
    assert len(CASES) * STEPS == 200
    for number, (choice, _) in enumerate(CASES.values(), 1):
        dp = choice.layout().dp
        steps = [RaggedStep.draw(1000 * number, step, dp) for step in range(STEPS)]
        assert {step.kind for step in steps} == set(KINDS)
        assert {step.size for step in steps} == {1, 2, 3}
        assert {len(step.samples) // step.size // dp for step in steps} == {1, 2, 3, 4}
        images = [[len(sample) - 1 for sample in step.samples] for step in steps]
        assert any(not any(counts) for counts in images)
        assert any(max(counts) > 1 and min(counts) == 0 for counts in images)
