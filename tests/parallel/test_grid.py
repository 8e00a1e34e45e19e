"""Grids: every rank has one place, groups divide the ranks, and the order is megatron-core's. No processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loongforge.kernels.backend import select
from loongforge.parallel.grid import AXES, Coordinates, Grid, divisors, nearest_divisor, ranks_text

select("auto").activate()

SIZES = st.integers(1, 4)
SOME_AXES = st.sampled_from([axes for number in range(5) for axes in combinations(AXES, number)])


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Of any sizes, on ranks in any order and with gaps between."""
    tp, cp, dp, pp = (draw(SIZES) for _ in AXES)
    number = tp * cp * dp * pp
    ranks = draw(st.lists(st.integers(0, 3 * number), min_size=number, max_size=number, unique=True))
    return Grid(tuple(ranks), tp, cp, pp)


@given(grids())
def test_tp_runs_fastest_then_cp_dp_pp(grid: Grid) -> None:
    for number, rank in enumerate(grid.ranks):
        place = grid.place(rank)
        assert place is not None
        assert number == place.tp + grid.tp * (place.cp + grid.cp * (place.dp + grid.dp * place.pp))
        assert all(0 <= getattr(place, axis) < size for axis, size in grid.sizes.items())
    assert grid.place(max(grid.ranks) + 1) is None


@given(grids(), SOME_AXES)
def test_groups_divide_the_ranks_and_differ_along_their_axes_only(grid: Grid, axes: Sequence[str]) -> None:
    groups = grid.groups(axes)
    assert sorted(rank for group in groups for rank in group) == sorted(grid.ranks)
    for group in groups:
        places = [grid.place(rank) for rank in group]
        for axis in AXES:
            values = [getattr(place, axis) for place in places]
            assert set(values) == (set(range(grid.sizes[axis])) if axis in axes else {values[0]})
        assert [grid.ranks.index(rank) for rank in group] == sorted(grid.ranks.index(rank) for rank in group)


@given(tp=SIZES, cp=SIZES, dp=SIZES, pp=SIZES, axes=SOME_AXES.filter(bool))
def test_groups_are_those_of_megatron_core(tp: int, cp: int, dp: int, pp: int, axes: Sequence[str]) -> None:
    from megatron.core.parallel_state import RankGenerator

    theirs = RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order="tp-cp-ep-dp-pp").get_ranks("-".join(axes))
    ours = Grid(tuple(range(tp * cp * dp * pp)), tp, cp, pp).groups(axes)
    assert sorted(map(list, ours)) == sorted(theirs)


@given(grids(), st.data())
def test_select_finds_the_ranks_at_some_coordinates(grid: Grid, data: st.DataObject) -> None:
    at = {axis: data.draw(st.integers(0, grid.sizes[axis] - 1)) for axis in data.draw(SOME_AXES)}
    expected = [
        rank for rank in grid.ranks if all(getattr(grid.place(rank), axis) == value for axis, value in at.items())
    ]
    assert list(grid.select(**at)) == expected
    assert len(expected) * math.prod(grid.sizes[axis] for axis in at) == len(grid.ranks)


def test_a_grid_in_words() -> None:
    assert Grid((4, 5, 6, 7), tp=2).place(6) == Coordinates(tp=0, cp=0, dp=1, pp=0)
    assert str(Grid((4, 5, 6, 7), tp=2)) == "tp2 dp2"
    assert str(Grid(tuple(range(8)), tp=2, cp=2, pp=2)) == "tp2 cp2 dp1 pp2"


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), (range(8), "ranks 0-7"), ([6, 0, 2, 5, 4], "ranks 0,2,4-6"), ([1, 0], "ranks 0-1")],
)
def test_ranks_in_words(ranks: Sequence[int], text: str) -> None:
    assert ranks_text(ranks) == text


@given(st.integers(1, 200), st.integers(0, 300))
def test_divisors(number: int, wanted: int) -> None:
    expected = [size for size in range(1, number + 1) if number % size == 0]
    assert divisors(number) == expected
    nearest = nearest_divisor(number, wanted)
    ratios = {size: max(size, max(wanted, 1)) / min(size, max(wanted, 1)) for size in expected}
    assert ratios[nearest] == pytest.approx(min(ratios.values()))


def test_experts_are_divided_among_those_that_divide_the_tokens() -> None:
    grid = Grid(tuple(range(16)), tp=2, cp=2, pp=2, ep=2)  # and dp=2
    assert grid.expert_groups(("ep",))[:2] == [(0, 2), (1, 3)]  # context-parallel neighbours
    assert grid.expert_groups(("edp",))[:2] == [(0, 4), (1, 5)]
    assert Grid(tuple(range(8)), tp=2, cp=2, ep=4).expert_groups(("ep",)) == [(0, 2, 4, 6), (1, 3, 5, 7)]
    assert Grid(tuple(range(4)), ep=2).expert_groups(("ep",)) == [(0, 1), (2, 3)]
    for axes in (("ep",), ("edp",), ("tp", "ep"), ("tp", "ep", "pp")):
        assert sorted(rank for group in grid.expert_groups(axes) for rank in group) == list(range(16))
    assert grid.expert_groups(("tp", "ep", "edp"))[0] == grid.groups(("tp", "cp", "dp"))[0]
