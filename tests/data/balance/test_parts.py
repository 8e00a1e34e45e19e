"""The parts of the planner, each against something simpler that does the same."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loongforge.data.balance import CostModel, feasible, plan, planner, spread, whole
from loongforge.data.balance.cells import Cells, Limit, fill_empty
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.giants import share_ranks
from loongforge.data.balance.rounding import round_units
from loongforge.data.balance.search import search
from loongforge.data.balance.types import BatchMetadata, Ints
from tests.data.balance.kinds import KINDS, QWEN, packed_batch
from tests.data.balance.rules import broken_rules

_numbers = st.lists(st.integers(0, 50), max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62) | st.integers(0, 5), max_size=50))
def test_orders(values: list[int]) -> None:
    rising = whole.rising(np.array(values, np.int64) // 2).tolist()
    assert rising == sorted(range(len(values)), key=lambda i: (values[i] // 2, i))
    falling = whole.falling(np.array(values, np.int64) // 2).tolist()
    assert falling == sorted(range(len(values)), key=lambda i: (-(values[i] // 2), i))


def test_scaled_costs_keep_their_ratios() -> None:
    factor = whole.factor_for([np.array([1.0, 2.0, 4e-3]), np.array([0.5])], count=1000)
    costs, units = whole.rounded(np.array([1.0, 2.0, 4e-3]) * factor), whole.rounded(np.array([0.5]) * factor)
    assert costs[1] == 2 * costs[0] == 4 * units[0]
    assert costs[2] / costs[0] == pytest.approx(4e-3, rel=1e-6)
    assert costs.max() * 1000 < 2**52
    assert whole.factor_for([np.zeros(2), np.zeros(0)], count=1) == 0


def _longest_first(costs: list[int], loads: list[int]) -> list[int]:
    """Final loads of longest-processing-time-first with a heap."""
    heap = [(load, bin_) for bin_, load in enumerate(loads)]
    heapq.heapify(heap)
    for cost in costs:
        load, bin_ = heap[0]
        heapq.heapreplace(heap, (load + cost, bin_))
    return sorted(load for load, _ in heap)


@settings(max_examples=150, deadline=None)
@given(_numbers, st.lists(st.integers(0, 30), min_size=2, max_size=9))
def test_spread_is_longest_first(costs: list[int], loads: list[int]) -> None:
    falling, sums = sorted(costs, reverse=True), np.array(loads)
    bins = spread.spread(np.array(falling, np.int64), sums)
    assert (sums == np.array(loads) + np.bincount(bins, weights=falling, minlength=len(loads))).all()
    assert sorted(sums.tolist()) == _longest_first(falling, loads)


def test_many_samples_are_dealt_out_evenly() -> None:
    costs = np.sort(np.random.default_rng(1).integers(1, 10**6, 5000))[::-1].copy()
    loads = np.zeros(8, np.int64)
    spread.spread(costs, loads)
    assert loads.max() - loads.min() < 0.001 * loads.mean()


def test_dealing_leaves_out_what_is_full() -> None:
    """A giant as heavy as half a bin's share beside many small ones; another bin is full from the start."""
    costs, before = np.array([60_000] + [100] * 8000), np.array([0, 0, 0, 500_000, 0, 0, 0, 0])
    loads = before.copy()
    bins = spread.spread(costs, loads)
    assert (loads - before == np.bincount(bins, weights=costs, minlength=8)).all()
    others = np.delete(loads, 3)
    assert others.max() - others.min() <= 100


@pytest.mark.parametrize("ranks", [1, 3])
def test_very_many_samples_on_few_ranks(ranks: int) -> None:
    tokens = np.random.default_rng(1).integers(1, 5000, 20_000)
    batch = BatchMetadata(tokens, np.zeros(20_001, np.int64), *np.zeros((3, 0), np.int64))
    cap = int(tokens.sum() / ranks / 4 * 1.001)
    made = planner.plan(batch, ranks, 4, QWEN, "one_barrier", token_cap=cap)
    assert not broken_rules(made, batch, ranks=ranks, micro_batches=4, token_cap=cap)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 6), st.integers(10, 80), st.integers(0, 20)
)
def test_fill_keeps_level_cap_and_spare(tokens: list[int], bins: int, cap: int, spare: int) -> None:
    sizes = np.array(sorted(tokens, reverse=True))
    costs = sizes * sizes
    cap = max(cap, int(sizes[0]))
    level = int(max(costs[0], 900))
    filled = spread.fill(
        costs, sizes, level=level, bins=bins, token_cap=cap, cost_of=lambda room: room * room, spare=spare
    )
    taken = filled >= 0
    assert np.bincount(filled[taken], weights=costs[taken], minlength=bins).max() <= level
    assert np.bincount(filled[taken], weights=sizes[taken], minlength=bins).max() <= cap
    assert (~taken).sum() >= min(spare, len(sizes))


def _cells(draw: st.DataObject, per_bin: int) -> Cells:
    costs = np.array(draw.draw(st.lists(st.integers(0, 50), min_size=8, max_size=40)))
    sizes = np.array(draw.draw(st.lists(st.integers(0, 9), min_size=len(costs), max_size=len(costs))))
    count = 4 * per_bin
    cell = np.array(draw.draw(st.lists(st.integers(0, count - 1), min_size=len(costs), max_size=len(costs))))
    return Cells(costs, [Limit("tokens", sizes, int(sizes.sum()) // count + 9)], cell, count, per_bin)


def _excess(loads: Ints, levels: Ints) -> float:
    return float(np.square(np.maximum(loads - levels, 0) / max(levels.max(), 1)).sum())


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from([1, 2, 3]))
def test_exchanges_only_improve(data: st.DataObject, per_bin: int) -> None:
    """First for the caps, then for the levels, within the caps if they were kept."""
    cells = _cells(data, per_bin)
    cap = np.array(cells.limits[0].cap)
    levels = np.full(4, max(int(cells.costs.sum()) // 4, 1))
    for goal in (None, levels):
        before = (_excess(cells.held[0], cap), _excess(cells.loads, levels), (cells.count == 0).sum())
        reached = relieve(cells, goal, Effort(100_000))
        after = (_excess(cells.held[0], cap), _excess(cells.loads, levels), (cells.count == 0).sum())
        assert reached == (after[0 if goal is None else 1] == 0)
        assert after[0] <= before[0] + 1e-9
        assert goal is None or after[1] <= before[1] + 1e-9
        assert after[2] <= before[2]
    fresh = Cells(cells.costs, cells.limits, cells.cell, 4 * per_bin, per_bin)
    assert (fresh.loads == cells.loads).all() and (fresh.held[0] == cells.held[0]).all()
    assert (fresh.count == cells.count).all()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_empty_cells_are_filled(data: st.DataObject) -> None:
    cells = _cells(data, 1)
    fill_empty(cells)
    assert cells.count.min() > 0


@pytest.mark.parametrize("sizes", [[6, 5, 5, 4, 4, 3, 3], [7, 7, 3, 3, 5, 5], [9, 8, 7, 6, 5, 4, 3, 2, 1, 15]])
def test_search_finds_what_fits_exactly(sizes: list[int]) -> None:
    limit = Limit("tokens", np.array(sizes), sum(sizes) // 3 if sum(sizes) % 3 == 0 else sum(sizes) // 2)
    cells = sum(sizes) // limit.cap
    found = search([limit], len(sizes), cells)
    assert found is not None
    assert np.bincount(found, weights=sizes).tolist() == [limit.cap] * cells


def test_giants_share_ranks() -> None:
    """Of 3 ranks with 4 cells and 4 stages two giants go to one. It takes 5 x 30 = 150, others 7 cells of up to 21."""
    costs = np.array([30, 30] + [1] * 167)
    rank, room = share_ranks(costs, ranks=3, steps=4, stages=4)
    assert rank.tolist() == [0, 0]
    assert room[1] == room[2] == 21
    assert 2 * room[0] + 8 * 21 >= 167


def test_giants_that_fill_a_rank_are_alone() -> None:
    rank, room = share_ranks(np.array([100, 1, 1, 1]), ranks=2, steps=2, stages=4)
    assert rank.tolist() == [0]
    assert room[0] == 0 and room[1] > 0


def test_search_gives_up() -> None:
    assert search([Limit("tokens", np.array([3, 3, 3]), 5)], 3, 2) is None


def test_units_fill_whole_turns() -> None:
    """Of 4 micro-batches with 10.5 units a rank two get 10 and two 11."""
    rng, ranks = np.random.default_rng(2), 8
    units = rng.integers(0, 6, 128)
    units[:84] += (336 - units.sum()) // 84
    units[: 336 - units.sum()] += 1
    assert units.sum() == 336
    costs = np.sort(rng.integers(1000, 1100, 128))[::-1].copy()
    cells = Cells(costs, [], np.arange(128) % 32, 32)
    micro_batch = np.arange(32) // ranks
    round_units(cells, units, 100_000, micro_batch, ranks)
    counts = np.bincount(micro_batch[cells.cell], weights=units)
    assert np.ceil(counts / ranks).sum() == 42


def test_tight_caps_are_met_where_even_spreading_fails() -> None:
    """Cells of best-fit-decreasing; the first placement breaks the cap."""
    sizes = np.array([60] * 6 + [40] * 6)
    limit = Limit("tokens", sizes, 100)
    even = Cells(sizes, [limit], np.array([0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5]), 6)
    assert not even.is_feasible()
    fitting = feasible.within_caps(even)
    assert fitting is not None and fitting.is_feasible()


def test_most_units_stay_with_their_sample() -> None:
    batch, _ = packed_batch("video", 16, 4, seed=1)
    made = planner.plan(batch, 16, 4, KINDS["video"].cost)
    assert made.encoder_rank is not None
    assert (made.encoder_rank == made.rank[batch.sample_of_image()[batch.image_of_unit()]]).mean() > 0.6


def test_giant_images_get_room_on_encoder_ranks() -> None:
    """Images of 196 to 10000 patches, the largest over half of a rank's mean: as even as one by one from nothing."""
    draw, ranks, steps = np.random.default_rng(5), 64, 4
    counts = draw.integers(0, 5, ranks * 32)
    patches = draw.choice([196, 1024, 4096, 10000], size=counts.sum(), p=[0.5, 0.3, 0.15, 0.05])
    batch = BatchMetadata(
        text_tokens=draw.integers(50, 2000, len(counts)),
        image_offsets=np.concatenate([[0], np.cumsum(counts)]),
        image_units=np.ones(len(patches), np.int64),
        patches_per_unit=patches,
        image_tokens=patches // 4,
    )
    cost = CostModel(vision_linear=6.75e-2, vision_quadratic=6.8e-6, llm_linear=0.195, llm_quadratic=4.64e-6)
    made = plan(batch, ranks=ranks, micro_batches=steps, cost=cost, objective="lock_step")
    assert made.encoder_rank is not None
    step = made.micro_batch[batch.sample_of_image()]
    ours = np.bincount(made.encoder_rank * steps + step, cost.units(patches), minlength=ranks * steps)
    one_by_one = 0.0
    for number in range(steps):
        loads = np.zeros(ranks)
        for work in -np.sort(-cost.units(patches[step == number])):
            loads[loads.argmin()] += work
        one_by_one += loads.max()
    assert ours.reshape(ranks, steps).max(axis=0).sum() <= 1.005 * one_by_one
