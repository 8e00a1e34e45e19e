"""Hundreds of random steps: nothing hangs, every loss is finite, the same on every rank, and that of one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from loongforge.config.schema import Config
from loongforge.training.verify.compare import LOSS
from tests.parallel.matrix import Choice, layouts, matrix_config
from tests.parallel.ragged_cases import KINDS, RaggedStep, Run, train_ragged
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
STEPS = 40
NORM = 1e-4


def _choice(llm: dict[str, Any], vision: dict[str, Any], **projector: Any) -> Choice:
    return Choice(4, tuple(llm.items()), tuple(vision.items()), tuple(projector.items()))


CASES: dict[str, tuple[Choice, dict[str, Any]]] = {
    "decoupled tp2 and sp": (_choice(dict(tp=2, sequence_parallel=True), dict(ranks=(2, 3))), {}),
    "one encoder for dp3, packed": (_choice({}, dict(ranks=(3,))), {}),
    "cp2, packed": (_choice(dict(cp=2), dict(tp=2), tp=1), dict(distributed=True)),
    "pp2, an encoder of all ranks": (_choice(dict(pp=2), dict(tp=4)), dict(distributed=True)),
    "pp2 tp2, encoders on the first stage": (
        _choice(dict(tp=2, pp=2, ranks=(0, 1, 2, 3)), dict(ranks=(0, 1))),
        dict(window=2, frozen=("vision",)),
    ),
}


def _run(name: str) -> Run:
    return Run(1000 * (1 + list(CASES).index(name)), STEPS, CASES[name][0].layout().dp, "packed" in name)


def _config(
    *, distributed: bool = False, window: int | None = None, frozen: tuple[str, ...] = (), layers: int = 2
) -> Config:
    config = matrix_config(distributed=distributed, num_layers=layers, vision_changes=dict(num_layers=2))
    config.trainer.encode_window = window
    for name in frozen:
        getattr(config.model, name).freeze = True
    return config


@pytest.fixture(scope="module")
def one_process() -> Iterator[Callable[..., list[tuple[float, float]]]]:
    """Losses and norms of one process that takes each step as one batch."""
    known: dict[Any, list[tuple[float, float]]] = {}
    with RankPool(1) as pool:

        def of(run: Run, **model: Any) -> list[tuple[float, float]]:
            key = (run, repr(model))
            if key not in known:
                known[key] = pool.run(train_ragged, _config(**model), run)[0]
            return known[key]

        yield of


def _check(choice: Choice, options: dict[str, Any], run: Run, one_process: Any, pools: Pools, fault: str = "") -> None:
    ranks = pools(4).run(train_ragged, choice.apply(_config(**options)), run, fault)
    assert all(math.isfinite(value) for step in ranks[0] for value in step)
    assert all(found == ranks[0] for found in ranks)
    expected = one_process(
        replace(run, pack=False), **{key: options[key] for key in ("frozen", "layers") if key in options}
    )
    assert [loss for loss, _ in ranks[0]] == pytest.approx([loss for loss, _ in expected], rel=0, abs=LOSS)
    assert [norm for _, norm in ranks[0]] == pytest.approx([norm for _, norm in expected], rel=NORM)


@pytest.mark.parametrize("name", CASES)
def test_ragged_steps_equal_one_process(name: str, one_process: Any, rank_pool: Pools) -> None:
    choice, options = CASES[name]
    _check(choice, options, _run(name), one_process, rank_pool)


def test_a_fault_is_seen(one_process: Any, rank_pool: Pools) -> None:
    name = "decoupled tp2 and sp"
    with pytest.raises(AssertionError, match="approx"):
        _check(*CASES[name], replace(_run(name), steps=5), one_process, rank_pool, "lost rows")


def _every_layout() -> list[Any]:
    """With packed rows and with another layout for the projector, in turn."""
    found = []
    for number, choice in enumerate(layouts(4)):
        shown = choice.with_projector_apart() if number % 4 > 1 else choice
        found.append(pytest.param(shown, number % 2 == 1, id=f"{shown}{' packed' if number % 2 else ''}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "pack"), _every_layout())
def test_ragged_steps_under_every_layout(choice: Choice, pack: bool, one_process: Any, rank_pool: Pools) -> None:
    _check(choice, dict(layers=4), Run(17, 25, choice.layout().dp, pack), one_process, rank_pool)


def test_the_steps_are_as_ragged_as_they_claim() -> None:
    assert len(CASES) * STEPS == 200
    for run in map(_run, CASES):
        steps = [RaggedStep.draw(run.seed, number, run.dp) for number in range(STEPS)]
        assert {step.kind for step in steps} == set(KINDS)
        assert {step.size for step in steps} == {1, 2, 3}
        assert {len(step.samples) // step.size // run.dp for step in steps} == {1, 2, 3}
        images = [[len(sample) - 1 for sample in step.samples] for step in steps]
        assert any(not any(counts) for counts in images)
        assert any(max(counts) > 1 and min(counts) == 0 for counts in images)
