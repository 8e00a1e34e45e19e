"""Caps that leave next to nothing free, and what is said where there is no plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loongforge.data.balance import CostModel, feasible, plan
from loongforge.data.balance.cells import Cells, Limit
from loongforge.data.balance.refit import refit
from tests.data.balance.kinds import KINDS, QWEN, Sample, metadata
from tests.data.balance.rules import broken_rules

_STEPS, _LARGE = 4, 6000
_FULL = ["native", "interleaved", "video", "text", "omni"]


def _planned(kind: str, ranks: int, objective: str, slack: float, patch_slack: float | None = None) -> None:
    """Eleven samples a cell, none of them large, and caps of so many times their mean load, in whole tokens."""
    rng, cells, samples = np.random.default_rng(7), ranks * _STEPS, list[Sample]()
    while len(samples) < 11 * cells:
        text, images = KINDS[kind].draw(rng)
        if text + sum(image[2] for image in images) < _LARGE:
            samples.append((text, images))
    batch = metadata(samples)
    caps = {"token_cap": int(np.ceil(slack * batch.tokens().sum() / cells))}
    if patch_slack is not None:
        caps["patch_cap"] = int(np.ceil(patch_slack * batch.patches().sum() / cells))
    shape = {"ranks": ranks, "micro_batches": _STEPS}
    made = plan(batch, **shape, cost=KINDS[kind].cost, objective=objective, **caps)
    assert not broken_rules(made, batch, **shape, **caps)


@pytest.mark.parametrize("objective", ["one_barrier", "lock_step", "pipeline"])
@pytest.mark.parametrize("kind", _FULL)
def test_cells_are_filled_to_the_last_token(kind: str, objective: str) -> None:
    _planned(kind, 8, objective, 1.0)


def test_caps_a_little_wider() -> None:
    for slack in (1.001, 1.01, 1.05):
        _planned("omni", 32, "lock_step", slack)


@pytest.mark.parametrize("kind", ["native", "video"])
def test_cells_are_filled_to_the_last_token_within_a_cap_on_patches(kind: str) -> None:
    _planned(kind, 8, "lock_step", 1.0, patch_slack=1.1)


def test_nothing_else_fills_cells_to_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasible, "refit", lambda cells: False)
    with pytest.raises(ValueError, match="none was found"):
        _planned("native", 8, "lock_step", 1.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=4, max_size=40), st.integers(1, 4), st.integers(0, 20))
def test_refit_keeps_every_sample_and_no_cell_empty(sizes: list[int], count: int, free: int) -> None:
    limit = Limit("tokens", np.array(sizes), max(max(sizes), sum(sizes) // count + free))
    other = Limit("patches", np.array(sizes[::-1]), max(max(sizes), sum(sizes) // count + 3 * free))
    cells = Cells(np.array(sizes), [limit, other], np.arange(len(sizes)) % count, count)
    reached = refit(cells)
    held = [np.bincount(cells.cell, weights=of.sizes, minlength=count) for of in (limit, other)]
    assert np.bincount(cells.cell, minlength=count).min() > 0
    assert all((of == sums).all() for of, sums in zip(cells.held, held, strict=True))
    assert reached == (held[0].max() <= limit.cap and held[1].max() <= other.cap)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(60, 90))
def test_cells_that_are_needed_are_not_more_than_suffice(sizes: list[int], cap: int) -> None:
    limit = Limit("tokens", np.array(sizes), cap)
    least = feasible.fewest([limit])
    assert -(-sum(sizes) // cap) <= least <= feasible.best_fit([limit], len(sizes)).max() + 1


def test_why_there_is_no_plan() -> None:
    """Cells for 5.5 images take 5. Even numbers never sum to an odd one, which no bound knows."""
    images = metadata([(10, [(1, 576, 576)])] * 43)
    with pytest.raises(ValueError, match=r"need 9 cells at least, and there are 8\. It works with micro_batches=3,"):
        plan(images, ranks=4, micro_batches=2, cost=QWEN, token_cap=3220)
    with pytest.raises(ValueError, match=r"none was found .* does not prove that there is none"):
        plan(metadata([(n, []) for n in (68, 54, 44, 30, 28, 14, 12)]), 2, 1, CostModel(llm_linear=1), token_cap=125)
