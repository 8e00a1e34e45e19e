from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from loongforge.data.order import SampleOrder

SEEDS = st.integers(0, 2**32 - 1)
GOLDEN = [8, 1, 6, 2, 0, 3, 5, 7, 4, 9, 2, 9]
GOLDEN_REPLACEMENTS = [4, 0, 5]


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 200), seed=SEEDS, epoch=st.integers(0, 5), shuffle=st.booleans())
def test_an_epoch_visits_every_sample_once(size: int, seed: int, epoch: int, shuffle: bool) -> None:
    order = SampleOrder([size], [1.0], seed=seed, shuffle=shuffle)
    visited = [order.at(epoch * size + i) for i in range(size)]
    assert sorted(visited) == [(0, i) for i in range(size)]
    if not shuffle:
        assert visited == sorted(visited)


@settings(deadline=None, max_examples=50)
@given(seed=SEEDS, positions=st.lists(st.integers(0, 10_000), min_size=1, max_size=50))
def test_a_position_depends_on_nothing_before_it(seed: int, positions: list[int]) -> None:
    sizes, weights = [7, 100, 3], [1.0, 2.5, 0.3]
    order = SampleOrder(sizes, weights, seed=seed)
    for position in positions:
        assert order.at(position) == SampleOrder(sizes, weights, seed=seed).at(position)
        assert order.replacement(position, 2) == SampleOrder(sizes, weights, seed=seed).replacement(position, 2)


@settings(deadline=None, max_examples=50)
@given(
    parts=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.3])), min_size=1, max_size=5),
    seed=SEEDS,
    number=st.integers(1, 500),
)
def test_shares_are_exact_and_each_source_has_its_own_epochs(
    parts: list[tuple[int, float]], seed: int, number: int
) -> None:
    sizes, weights = [size for size, _ in parts], [weight for _, weight in parts]
    order = SampleOrder(sizes, weights, seed=seed)
    drawn = [order.at(position) for position in range(number)]
    for source, (size, weight) in enumerate(parts):
        indices = [index for which, index in drawn if which == source]
        assert abs(len(indices) - number * weight / sum(weights)) <= len(parts)
        for epoch in range(len(indices) // size):
            assert sorted(indices[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_whole_rounds_have_exact_proportions() -> None:
    order = SampleOrder([10, 10, 10], [0.5, 0.3, 0.2], seed=0)
    for first in (0, 10, 70):
        assert Counter(order.at(first + i)[0] for i in range(10)) == {0: 5, 1: 3, 2: 2}


def test_orders_differ_by_seed_epoch_and_source_and_not_by_global_state() -> None:
    def draw(seed: int, epoch: int) -> list[int]:
        order = SampleOrder([50], [1.0], seed=seed)
        return [order.at(epoch * 50 + i)[1] for i in range(50)]

    assert len({tuple(draw(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    np.random.seed(5)
    first = draw(1, 0)
    np.random.seed(6)
    assert draw(1, 0) == first
    two = SampleOrder([50, 50], [1.0, 1.0], seed=1)
    drawn = [two.at(i) for i in range(100)]
    assert [i for s, i in drawn if s == 0] != [i for s, i in drawn if s == 1]


def test_the_order_of_earlier_runs_stays() -> None:
    """A resumed run needs the order of its start, whatever the versions of numpy and loongforge."""
    order = SampleOrder([10], [1.0], seed=1234)
    assert [order.at(i)[1] for i in range(12)] == GOLDEN
    assert [order.replacement(3, attempt)[1] for attempt in (1, 2, 3)] == GOLDEN_REPLACEMENTS


def test_first_places_are_uniform() -> None:
    counts = Counter(SampleOrder([4], [1.0], seed=seed).at(0)[1] for seed in range(2000))
    assert all(420 < counts[i] < 580 for i in range(4))


def test_epoch_counts_the_source_that_is_furthest() -> None:
    order = SampleOrder([10, 100], [1.0, 1.0], seed=0)
    assert order.epoch(0) == 0
    assert order.epoch(40) == 2.0
    assert SampleOrder([8], [1.0], seed=0).epoch(12) == 1.5


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
@settings(deadline=None)
def test_once_is_when_everything_has_come(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=len(sizes), max_size=len(sizes)))
    order = SampleOrder(sizes, weights, seed=1)
    everything = {(source, index) for source, size in enumerate(sizes) for index in range(size)}
    places = [order.at(position) for position in range(order.once())]
    assert set(places) == everything
    assert set(places[:-1]) != everything
