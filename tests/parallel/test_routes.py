"""Who sends which row to whom: every wanted row arrives exactly once, in its place. No processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loongforge.parallel.grid import Grid
from loongforge.parallel.routes import Transfer, context_positions, plan_transfers, sequence_slice

Rows = dict[int, np.ndarray]


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Rows that ranks hold, each held by some rank, and rows that ranks want; both in any order."""
    number = draw(st.integers(0, 12))
    some_rows = st.lists(st.integers(0, max(number - 1, 0)), max_size=number, unique=True)
    holds = draw(st.dictionaries(st.integers(0, 6), some_rows, min_size=1))
    held = {row for rows in holds.values() for row in rows}
    wanted = st.lists(st.sampled_from(sorted(held)), unique=True) if held else st.just([])
    wants = draw(st.dictionaries(st.integers(0, 6), wanted))
    return _arrays(holds), _arrays(wants)


def _arrays(rows: dict[int, list[int]]) -> Rows:
    return {rank: np.asarray(part, np.int64) for rank, part in rows.items()}


def _carry_out(transfers: list[Transfer], holds: Rows, wants: Rows) -> dict[int, list[list[int]]]:
    """What arrives at each place of what each rank wants."""
    arrived: dict[int, list[list[int]]] = {rank: [[] for _ in rows] for rank, rows in wants.items()}
    for transfer in transfers:
        assert len(transfer.source_rows) == len(transfer.target_rows) > 0
        for source, target in zip(transfer.source_rows, transfer.target_rows, strict=True):
            assert source >= 0
            arrived[transfer.target][target].append(int(holds[transfer.source][source]))
    return arrived


@given(exchanges())
def test_every_wanted_row_arrives_once_in_its_place(exchange: tuple[Rows, Rows]) -> None:
    holds, wants = exchange
    arrived = _carry_out(plan_transfers(holds, wants), holds, wants)
    assert arrived == {rank: [[int(row)] for row in rows] for rank, rows in wants.items()}


@given(exchanges())
def test_a_rank_keeps_what_it_holds_itself(exchange: tuple[Rows, Rows]) -> None:
    holds, wants = exchange
    for transfer in plan_transfers(holds, wants):
        if transfer.source != transfer.target:
            sent = holds[transfer.source][transfer.source_rows]
            assert not set(sent) & set(holds.get(transfer.target, np.empty(0)))


@given(exchanges())
def test_two_ranks_exchange_one_message_at_most(exchange: tuple[Rows, Rows]) -> None:
    """Messages between two ranks are told apart by their order alone."""
    pairs = Counter((transfer.source, transfer.target) for transfer in plan_transfers(*exchange))
    assert not pairs or max(pairs.values()) == 1


@given(exchanges())
def test_every_rank_makes_the_same_plan(exchange: tuple[Rows, Rows]) -> None:
    """Ranks may have listed holders and wanters in another order."""
    holds, wants = exchange
    reverse = [dict(reversed(list(part.items()))) for part in (holds, wants)]
    plans = [plan_transfers(holds, wants), plan_transfers(*reverse)]
    first, second = ([(t.source, t.target, t.source_rows.tolist(), t.target_rows.tolist()) for t in p] for p in plans)
    assert first == second


def test_nothing_wanted_nothing_sent() -> None:
    empty = np.empty(0, np.int64)
    assert plan_transfers({}, {}) == []
    assert plan_transfers({0: np.arange(3)}, {}) == []
    assert plan_transfers({0: np.arange(3), 1: empty}, {1: empty}) == []
    assert plan_transfers({}, {1: empty}) == []


def test_a_row_that_nobody_holds_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="nobody holds"):
        plan_transfers({0: np.arange(3)}, {1: np.array([3])})


def test_wanters_take_turns_with_the_holders() -> None:
    """Four ranks hold the same rows (a tensor-parallel encoder): each serves one of four others, in one message."""
    rows = np.arange(10)
    transfers = plan_transfers(dict.fromkeys(range(4), rows), dict.fromkeys(range(4, 8), rows))
    assert sorted((t.source, t.target) for t in transfers) == [(0, 4), (1, 5), (2, 6), (3, 7)]


CP = st.sampled_from([1, 2, 4])


@given(cp=CP, chunk=st.integers(1, 5))
def test_context_ranks_divide_the_row_and_its_causal_work(cp: int, chunk: int) -> None:
    length = 2 * cp * chunk
    parts = [context_positions(length, rank, cp) for rank in range(cp)]
    assert sorted(np.concatenate(parts)) == list(range(length))
    assert all((np.diff(part) > 0).all() for part in parts)
    assert len({int((part + 1).sum()) for part in parts}) == 1  # position p attends to p + 1


def test_two_chunks_of_each_context_rank() -> None:
    assert [context_positions(8, rank, 2).tolist() for rank in range(2)] == [[0, 1, 6, 7], [2, 3, 4, 5]]
    with pytest.raises(AssertionError, match="sequence_multiple"):
        context_positions(6, 0, 2)


@given(tp=st.sampled_from([1, 2, 3]), cp=CP, dp=st.integers(1, 2), part=st.integers(1, 3), split=st.booleans())
def test_the_ranks_of_a_first_stage_embed_every_position(tp: int, cp: int, dp: int, part: int, split: bool) -> None:
    grid = Grid(tuple(range(tp * cp * dp * 2)), tp, cp, pp=2)
    length = 2 * cp * tp * part
    for replica in range(dp):
        times = Counter[int]()
        for rank in grid.select(pp=0, dp=replica):
            place = grid.place(rank)
            assert place is not None
            positions = sequence_slice(grid, rank, length, sequence_parallel=split)
            whole = context_positions(length, place.cp, cp)
            first = place.tp * len(whole) // tp if split else 0
            assert positions.tolist() == whole[first : first + len(positions)].tolist()
            times.update(positions.tolist())
        assert times == dict.fromkeys(range(length), 1 if split else tp)
