"""Each rank is a pipeline: cells of equal cost, and where a single sample is heavier, less beside it."""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells, fill_empty
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.feasible import within_caps
from loongforge.data.balance.problem import Problem
from loongforge.data.balance.spread import spread
from loongforge.data.balance.types import Ints
from loongforge.data.balance.whole import falling, rising

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
    _, best = min(found, key=lambda pair: pair[0])
    return _in_pipelines(best.loads, problem.ranks, stages)[best.cell]


def _improved(cells: Cells, ranks: int, stages: int) -> tuple[int, Cells]:
    """(time, assignment), the best that exchanges lead to."""
    effort, best, least = Effort(_EFFORT), cells.copy(), 0
    for turn in range(_TRIES + 1):
        number = _in_pipelines(cells.loads, ranks, stages)
        time = _pipeline_time(cells.loads, number, ranks, stages)
        if turn and (time >= least or not cells.is_feasible()):
            break
        best, least = cells.copy(), time
        relieve(cells, _levels(cells, number, ranks, stages), effort)
    return least, best


def _even(problem: Problem) -> Ints:
    """[n] cell of every sample, all cells as equal as can be."""
    order = falling(problem.both)
    cell = np.empty(len(order), np.int64)
    cell[order] = spread(problem.both[order], np.zeros(problem.cells, np.int64))
    return cell


def _beside_giants(problem: Problem, stages: int) -> Ints:
    """[n] cell of every sample: those heavier than a mean cell in cells of their own, of ranks with the least so far;
    the others spread to what their rank has left."""
    costs, ranks = problem.both, problem.ranks
    order = falling(costs)
    giants = order[: int(np.searchsorted(-costs[order], -(costs.sum() // problem.cells)))]
    heaviest, busy, taken = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    cell = np.empty(len(costs), np.int64)
    for start in range(0, len(giants), ranks):
        some = giants[start : start + ranks]
        rank = rising(busy + (stages - 1) * heaviest)[: len(some)]
        cell[some] = rank * problem.micro_batches + taken[rank]
        heaviest[rank] = np.maximum(heaviest[rank], costs[some])
        busy[rank] += costs[some]
        taken[rank] += 1
    rest = order[len(giants) :]
    free = np.flatnonzero(np.arange(problem.micro_batches) >= taken[:, None])  # cells without a giant
    room = _rooms(heaviest, busy, taken, int(costs[rest].sum()), problem.micro_batches, stages)[
        free // problem.micro_batches
    ]
    cell[rest] = free[spread(costs[rest], room.max(initial=0) - room)] if len(free) else cell[giants[-1]]
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


def _in_pipelines(loads: Ints, ranks: int, stages: int) -> Ints:
    """[cells] number of every cell, rank * K + micro-batch. A rank's largest cell counts `stages` times."""
    steps = len(loads) // ranks
    member = np.empty((ranks, steps), np.int64)  # cells of every rank, falling
    sums = np.zeros(ranks, np.int64)
    for step, some in enumerate(falling(loads).reshape(steps, ranks)):
        rank = rising(sums)
        member[rank, step] = some
        sums[rank] += loads[some] * (1 if step else stages)
    number = np.empty(len(loads), np.int64)
    ends = [slot for pair in zip(range(steps), range(steps - 1, -1, -1), strict=True) for slot in pair][:steps]
    for place, slot in enumerate(ends):  # 0, K - 1, 1, K - 2, ...: from the smallest cell on
        number[member[:, steps - 1 - place]] = np.arange(ranks) * steps + slot
    return number


def _pipeline_time(loads: Ints, number: Ints, ranks: int, stages: int) -> int:
    """Of the slowest rank, times the number of stages."""
    cells = np.empty_like(loads)
    cells[number] = loads
    cells = cells.reshape(ranks, -1)
    return int((cells.sum(axis=1) + (stages - 1) * cells.max(axis=1)).max())


def _levels(cells: Cells, number: Ints, ranks: int, stages: int) -> Ints:
    """[cells] loads that make all ranks take equally long, given the heaviest sample of each cell."""
    steps, loads = len(number) // ranks, np.zeros(len(number), np.int64)
    single = np.zeros(len(number), np.int64)
    np.maximum.at(single, number[cells.cell], cells.costs)
    loads[number] = cells.loads
    giant = single.reshape(ranks, steps) > cells.loads.sum() // len(number)
    of_giants = np.where(giant, loads.reshape(ranks, steps), 0)
    busy, heaviest = of_giants.sum(axis=1), of_giants.max(axis=1)
    total = int(cells.loads.sum() - busy.sum())
    room = _rooms(heaviest, busy, giant.sum(axis=1), total, steps, stages)
    room += room // _SPARE
    return np.where(giant, of_giants, room[:, None]).ravel()[number]
