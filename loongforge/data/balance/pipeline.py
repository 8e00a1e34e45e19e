"""Each rank is a pipeline: cells of equal cost, and where a single sample is heavier, less beside it."""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells, fill_empty
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.feasible import within_caps
from loongforge.data.balance.giants import share_ranks
from loongforge.data.balance.problem import Problem
from loongforge.data.balance.spread import spread
from loongforge.data.balance.types import Ints
from loongforge.data.balance.whole import falling, rising, sums

_EFFORT = 1_500_000
_TRIES = 8
_SPARE = 1000  # levels are a thousandth above what would be just enough


def pipeline(problem: Problem, stages: int) -> Ints | None:
    """[n] cell of every sample, rank * K + micro-batch: the small cells of a rank first and last. None where the caps
    cannot be kept."""
    found = []
    for start in (_even(problem), _beside_giants(problem, stages)):
        cells = Cells(problem.both, problem.limits, start, problem.cells)
        fill_empty(cells)
        fitting = within_caps(cells)
        if fitting is None:
            return None
        found.append(_improved(fitting, problem.ranks, stages))
    _, best, rank = min(found, key=lambda option: option[0])
    return _small_at_ends(best.loads, rank, problem.ranks)[best.cell]


def _improved(cells: Cells, ranks: int, stages: int) -> tuple[int, Cells, Ints]:
    """(time, assignment, rank of every cell), the best that exchanges lead to."""
    effort = Effort(_EFFORT)
    found: list[tuple[int, Cells, Ints]] = []
    for _ in range(_TRIES):
        as_placed = np.arange(len(cells.loads)) // (len(cells.loads) // ranks)
        options = [
            (_time(cells.loads, rank, ranks, stages), rank) for rank in (as_placed, _dealt_ranks(cells, ranks, stages))
        ]
        time, rank = min(options, key=lambda option: option[0])
        if found and (time >= found[-1][0] or not cells.is_feasible()):
            break
        found.append((time, cells.copy(), rank))
        relieve(cells, _levels(cells, rank, ranks, stages), effort)
    return found[-1]


def _even(problem: Problem) -> Ints:
    """[n] cell of every sample, all cells as equal as can be."""
    order = falling(problem.both)
    cell = np.empty(len(order), np.int64)
    cell[order] = spread(problem.both[order], np.zeros(problem.cells, np.int64))
    return cell


def _beside_giants(problem: Problem, stages: int) -> Ints:
    """[n] cell of every sample, rank * K + any: giants on as few ranks as can be, the others where there is room."""
    costs, steps = problem.both, problem.micro_batches
    order = falling(costs)
    rank, room = share_ranks(costs[order], problem.ranks, steps, stages)
    cell = np.empty(len(costs), np.int64)
    giants, rest = order[: len(rank)], order[len(rank) :]
    by_rank = rising(rank)
    taken = np.bincount(rank, minlength=problem.ranks)
    starts = np.cumsum(taken) - taken
    cell[giants[by_rank]] = rank[by_rank] * steps + np.arange(len(rank)) - starts[rank[by_rank]]
    free = np.flatnonzero(np.arange(steps) >= taken[:, None])  # cells without a giant
    if not len(free):
        free = np.arange(problem.cells)
    rooms = room[free // steps]
    cell[rest] = free[spread(costs[rest], rooms.max() - rooms)]
    return cell


def _rooms(heaviest: Ints, busy: Ints, taken: Ints, total: int, steps: int, stages: int) -> Ints:
    """[ranks] what each of a rank's other cells may hold, so that they hold `total` and all ranks take equally long."""

    def rooms(level: int) -> Ints:
        left = (steps + stages - 1) * level - busy - (stages - 1) * np.maximum(heaviest, level)
        return np.clip(left // np.maximum(steps - taken, 1), 0, level)

    low, high = 0, int(busy.sum()) + total + 1
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if int((rooms(level) * (steps - taken)).sum()) <= total else (low, level)
    return rooms(high)


def _dealt_ranks(cells: Cells, ranks: int, stages: int) -> Ints:
    """[cells] rank of every cell: in turns, the largest to the rank with the least; the first counts `stages` times."""
    rank, busy = np.empty(len(cells.loads), np.int64), np.zeros(ranks, np.int64)
    for step, some in enumerate(falling(cells.loads).reshape(-1, ranks)):
        least = rising(busy)
        rank[some] = least
        busy[least] += cells.loads[some] * (1 if step else stages)
    return rank


def _small_at_ends(loads: Ints, rank: Ints, ranks: int) -> Ints:
    """[cells] rank * K + micro-batch of every cell: from the smallest on the first, the last, the second, ..."""
    steps = len(loads) // ranks
    order = rising(loads)
    order = order[rising(rank[order])]  # by rank, the smallest of each first
    slots = [slot for pair in zip(range(steps), range(steps - 1, -1, -1), strict=True) for slot in pair][:steps]
    number = np.empty(len(loads), np.int64)
    number[order] = rank[order] * steps + np.tile(slots, ranks)
    return number


def _time(loads: Ints, rank: Ints, ranks: int, stages: int) -> int:
    """Of the slowest rank, times the number of stages."""
    largest = np.zeros(ranks, np.int64)
    np.maximum.at(largest, rank, loads)
    return int((sums(rank, loads, ranks) + (stages - 1) * largest).max())


def _levels(cells: Cells, rank: Ints, ranks: int, stages: int) -> Ints:
    """[cells] loads that make all ranks take equally long, given the heaviest sample of each cell."""
    single = np.zeros(len(rank), np.int64)
    np.maximum.at(single, cells.cell, cells.costs)
    giant = single > cells.loads.sum() // len(rank)
    heaviest = np.zeros(ranks, np.int64)
    np.maximum.at(heaviest, rank[giant], cells.loads[giant])
    busy, taken = sums(rank[giant], cells.loads[giant], ranks), np.bincount(rank[giant], minlength=ranks)
    total = int(cells.loads.sum() - busy.sum())
    room = _rooms(heaviest, busy, taken, total, len(rank) // ranks, stages)
    room += room // _SPARE
    return np.where(giant, cells.loads, room[rank])
