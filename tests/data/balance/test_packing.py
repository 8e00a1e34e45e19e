"""Packs hold what they may, and are those of best-fit-decreasing done one by one."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loongforge.data.balance import pack
from tests.data.balance.kinds import KINDS, fixed_batch


def _one_by_one(lengths: list[int], budget: int) -> list[int]:
    """Rooms left of the packs of best-fit-decreasing, rising."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect_left(rooms, length)
        room = rooms.pop(at) if at < len(rooms) else budget
        insort(rooms, room - length)
    return rooms


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.data())
def test_packs_are_those_of_best_fit_decreasing(budget: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, budget), max_size=60))
    packs = pack(lengths, budget)
    assert packs.shape == (len(lengths),)
    assert sorted(set(packs.tolist())) == list(range(packs.max(initial=-1) + 1))
    held = np.bincount(packs, weights=lengths).astype(int)
    assert sorted(budget - held) == _one_by_one(lengths, budget)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_fill_as_best_fit_decreasing(kind: str) -> None:
    budget = KINDS[kind].budget
    lengths = fixed_batch(kind, 2000, 1, seed=3).tokens()
    lengths = lengths[lengths <= budget]
    held = np.bincount(pack(lengths, budget), weights=lengths)
    assert held.max() <= budget
    assert len(held) == len(_one_by_one(lengths.tolist(), budget))


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.data())
def test_both_budgets_hold(budget: int, patch_budget: int, data: st.DataObject) -> None:
    sizes = st.tuples(st.integers(0, budget), st.integers(0, patch_budget))
    samples = data.draw(st.lists(sizes, max_size=40))
    lengths, patches = [a for a, _ in samples], [b for _, b in samples]
    packs = pack(lengths, budget, patches, patch_budget)
    assert sorted(set(packs.tolist())) == list(range(packs.max(initial=-1) + 1))
    assert np.bincount(packs, weights=lengths).max(initial=0) <= budget
    assert np.bincount(packs, weights=patches).max(initial=0) <= patch_budget
    shares = np.maximum(np.array(lengths) / budget, np.array(patches) / max(patch_budget, 1))
    assert packs.max(initial=-1) + 1 <= 2 * shares.sum() + np.sqrt(len(samples)) + 1  # far from a pack for each


def test_second_budget_costs_no_pack_where_it_does_not_bind() -> None:
    batch = fixed_batch("tiles", 500, 1, seed=1)
    assert (pack(batch.tokens(), 8192) == pack(batch.tokens(), 8192, batch.patches(), 1 << 40)).all()


def test_second_budget_binds() -> None:
    assert pack([1, 1, 1, 1], 4, [10, 10, 10, 10], 20).max() == 1
    assert pack([4, 1, 4, 1], 5, [1, 9, 1, 9], 10).max() == 1


def test_large_budget() -> None:
    lengths = np.arange(1, 400) * 10**9
    held = np.bincount(pack(lengths, 10**12, lengths, 10**12), weights=lengths)
    assert held.max() <= 10**12
    assert np.bincount(pack([3, 2, 2], 10**12, [3, 2, 2], 4), weights=[3, 2, 2]).max() <= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3, 9, 4], 8), r"lengths\[1\] is 9 and budget is 8"),
        (([3, -1], 8), "whole numbers"),
        (([1.5], 8), "whole numbers"),
        (([1, 2], 8, [5, 6], 5), r"patches\[1\] is 6 and patch_budget is 5"),
        (([1, 2], 8, [5], 5), "1 patches for 2 lengths"),
        (([1, 2], 8, None, 5), "patch_budget needs the patches"),
    ],
)
def test_what_cannot_be_packed(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(*arguments)  # type: ignore[arg-type]
