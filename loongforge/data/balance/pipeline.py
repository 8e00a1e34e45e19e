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
_SPARE = 1.001


def pipeline(problem: Problem, stages: int) -> Ints | None:
    """[n] cell of every sample, rank * K + micro-batch: equal cells, the small ones of a rank first and last."""
    order = falling(problem.both)
    cell = np.empty(len(order), np.int64)
    cell[order] = spread(problem.both[order], np.zeros(problem.cells, np.int64))
    cells = Cells(problem.both, problem.limits, cell, problem.cells)
    fill_empty(cells)
    fitting = within_caps(cells)
    if fitting is None:
        return None
    effort = Effort(_EFFORT)
    best, number = fitting.copy(), _in_pipelines(fitting.loads, problem.ranks, stages)
    best_time = _pipeline_time(fitting.loads, number, problem.ranks, stages)
    for _ in range(_TRIES):
        levels = _levels(fitting, number, problem.ranks, stages)
        relieve(fitting, levels, effort)
        number = _in_pipelines(fitting.loads, problem.ranks, stages)
        time = _pipeline_time(fitting.loads, number, problem.ranks, stages)
        if time >= best_time:
            break
        best, best_time = fitting.copy(), time
    return _in_pipelines(best.loads, problem.ranks, stages)[best.cell]


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
    """[cells] loads that make all ranks take equally long, given the heaviest sample of each."""
    steps = len(number) // ranks
    heaviest = np.zeros(len(number), np.int64)
    np.maximum.at(heaviest, cells.cell, cells.costs)
    giant = np.zeros(len(number), np.int64)
    giant[number] = heaviest
    giant = giant.reshape(ranks, steps)
    top, total = giant.max(axis=1), int(cells.loads.sum())
    low, high = 0, total + 1
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if int(_sums(top, level, steps, stages).sum()) <= total else (low, level)
    high = int(high * _SPARE) + 1
    others = np.where(top > high, (_sums(top, high, steps, stages) - top) // max(steps - 1, 1), high)
    levels = np.where(giant == top[:, None], np.maximum(top, high)[:, None], others[:, None])
    return levels.ravel()[number]


def _sums(top: Ints, level: int, steps: int, stages: int) -> Ints:
    """[ranks] what each can hold when ordinary cells hold `level`."""
    others = np.maximum((steps + stages - 1) * level - stages * top, 0)
    return np.where(top > level, top + others, steps * level)
