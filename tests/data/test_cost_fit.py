"""Costs from measured times: what was put in comes out, whichever rank has seen it."""

from __future__ import annotations

import numpy as np
import pytest

from loongforge.data.balance import CostModel
from loongforge.data.cost_fit import CostFit

TRUE = CostModel(vision_linear=0.02, llm_linear=0.07, llm_quadratic=2e-5, llm_per_sample=0.5)


def _measure(fits: list[CostFit], steps: int, noise: float) -> CostModel:
    """Ranks see different samples; all get the sum."""
    draw = np.random.default_rng(0)
    for _ in range(steps):
        for fit in fits:
            lengths = draw.lognormal(5.5, 0.8, draw.integers(3, 9)).astype(np.int64)
            fit.note_llm(lengths, float(TRUE.documents(lengths).sum()) * draw.normal(1, noise))
            units = int(draw.integers(0, 8))
            if units:
                fit.note_vision(64 * units, 1, 64 * units * TRUE.vision_linear * draw.normal(1, noise) + 3.0)
    everyone = np.sum([fit.pending() for fit in fits], axis=0)
    found = [fit.update(everyone) for fit in fits]
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.mark.parametrize("ranks", [1, 4])
def test_true_costs_are_found(ranks: int) -> None:
    found = _measure([CostFit(CostModel(llm_linear=1.0, vision_linear=1.0)) for _ in range(ranks)], 40, 0.0)
    assert found.llm_linear == pytest.approx(TRUE.llm_linear, rel=1e-3)
    assert found.llm_quadratic == pytest.approx(TRUE.llm_quadratic, rel=1e-3)
    assert found.llm_per_sample == pytest.approx(TRUE.llm_per_sample, rel=1e-3)
    assert found.vision_linear == pytest.approx(TRUE.vision_linear, rel=1e-3)  # the fixed time of a call is told apart


def test_noise_leaves_costs_near_and_never_negative() -> None:
    found = _measure([CostFit(CostModel()) for _ in range(4)], 60, 0.05)
    lengths = np.array([50, 300, 2000])
    assert found.documents(lengths) == pytest.approx(TRUE.documents(lengths), rel=0.25)
    assert min(found.llm_linear, found.llm_quadratic, found.llm_per_sample, found.vision_linear) >= 0


def test_nothing_measured_changes_nothing() -> None:
    fit = CostFit(TRUE)
    assert fit.update(fit.pending()) == TRUE
    fit.note_vision(64, 1, 2.0)
    assert fit.update(fit.pending()).llm_linear == TRUE.llm_linear


def test_a_checkpoint_goes_on() -> None:
    one, other = CostFit(CostModel()), CostFit(CostModel())
    _measure([one], 20, 0.0)
    other.restore(one.state(), one.cost)
    assert other.cost == one.cost
    assert other.llm.solve() == pytest.approx(one.llm.solve(), rel=1e-6)
