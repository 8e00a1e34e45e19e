"""Ranks wait for each other in every micro-batch: its cells have to cost the same, micro-batches need not.

Heavy samples share a micro-batch whose other cells are filled to their level; the rest is spread evenly over what is
left; then exchanges lower the heaviest cells of each micro-batch. The step time of the language model is the sum of the
heaviest cell, the heaviest but D, the heaviest but 2 D, ...: which cells form a micro-batch follows from their costs.
"""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells, fill_empty
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.feasible import within_caps
from loongforge.data.balance.grouping import grouped
from loongforge.data.balance.problem import Problem
from loongforge.data.balance.rounding import round_units
from loongforge.data.balance.spread import fill, spread
from loongforge.data.balance.types import BatchMetadata, Floats, Ints
from loongforge.data.balance.whole import falling, rising

_GOAL = 1.001  # close enough to the mean
_STEP = 0.0003  # a gain worth another try
_TRIES = 16
_EFFORT = 2_000_000


def lock_step(problem: Problem, batch: BatchMetadata) -> Ints | None:
    """[n] cell of every sample, rank * K + micro-batch. None where the caps cannot be kept."""
    if len(problem.order) <= problem.cells:
        cells = Cells(problem.llm, problem.limits, np.arange(len(problem.order)), problem.cells)
    else:
        start = within_caps(_levels_filled(problem))
        if start is None:
            return None
        cells = lower_levels(start, problem.ranks, Effort(_EFFORT))
    micro_batch = grouped(problem, batch, cells)
    if problem.has_equal_units and problem.micro_batches > 1:
        units = batch.per_sample(batch.image_units)[problem.order]
        round_units(cells, units, int(problem.unit_costs[0]), micro_batch, problem.ranks)
    return _ranked(cells.loads, micro_batch, problem.ranks)[cells.cell]


def _levels_filled(problem: Problem) -> Cells:
    """Level filling. A cap on tokens guides it, but it may exceed caps."""
    costs, tokens, ranks = problem.llm, problem.tokens, problem.ranks
    caps = [limit.cap for limit in problem.limits if limit.name == "tokens"]
    token_cap = min([*caps, int(tokens.sum())])
    cell, left, done = np.empty(len(costs), np.int64), np.arange(len(costs)), 0
    while done < problem.micro_batches - 1:
        level, rest = int(costs[left[0]]), ranks * (problem.micro_batches - done)
        if level * rest <= costs[left].sum():
            break
        room = dict(level=level, bins=ranks, token_cap=token_cap, spare=rest - ranks)
        filled = fill(costs[left], tokens[left], cost_of=problem.llm_cost_of, **room)
        taken = filled >= 0
        cell[left[taken]] = done * ranks + filled[taken]
        left, done = left[~taken], done + 1
    cell[left] = done * ranks + spread(costs[left], np.zeros(problem.cells - done * ranks, np.int64))
    cells = Cells(costs, problem.limits, cell, problem.cells)
    fill_empty(cells)
    return cells


def _ranked(loads: Ints, micro_batch: Ints, ranks: int) -> Ints:
    """[cells] rank * K + micro-batch of every cell; in a micro-batch the heaviest to the rank with the least so far."""
    steps = len(loads) // ranks
    number, sums = np.empty(len(loads), np.int64), np.zeros(ranks, np.int64)
    for step in range(steps):
        some = np.flatnonzero(micro_batch == step)
        some, rank = some[falling(loads[some])], rising(sums)
        number[some] = rank * steps + step
        sums[rank] += loads[some]
    return number


def time_of(loads: Ints, ranks: int) -> int:
    """Sum over micro-batches of the heaviest cell."""
    return int(np.sort(loads)[::-1][::ranks].sum())


def lower_levels(cells: Cells, ranks: int, effort: Effort) -> Cells:
    """The best feasible assignment that exchanges lead to, from a feasible one."""
    best, best_time = cells.copy(), time_of(cells.loads, ranks)
    keep, goal, vain = 0.5, int(cells.loads.sum()) * _GOAL, 0
    for _ in range(_TRIES):
        if best_time * ranks <= goal or effort.left <= 0 or vain == 4:
            break
        levels = _lower(cells, ranks, keep)
        if levels is None:
            break
        reached = relieve(cells, levels, effort)
        time = time_of(cells.loads, ranks)
        vain = vain + 1 if time * (1 + _STEP) > best_time else 0
        if time < best_time and cells.is_feasible():
            best, best_time = cells.copy(), time
        if not reached:
            keep = (1 + keep) / 2
            if keep > 0.96:
                break
    return best


def _lower(cells: Cells, ranks: int, keep: float) -> Ints | None:
    """[cells] levels that leave so much of the idle time; None where single samples set every level."""
    groups = falling(cells.loads).reshape(-1, ranks)
    loads = cells.loads[groups]
    top, heaviest = loads[:, 0], _heaviest(cells)
    idle = top - loads.sum(axis=1) // ranks
    movable = idle.copy()
    if heaviest.max() * _GOAL >= top[0]:
        movable[0] = 0
    if not movable.any():
        return None
    wanted = np.maximum(top - (1 - keep) * idle.sum() * movable / movable.sum(), 0)
    wanted[0] = max(wanted[0], heaviest.max())
    for step in range(len(groups) - 1, 0, -1):
        _promote(groups, step, wanted, cells.loads, heaviest)
    levels = np.empty(len(cells.loads), np.int64)
    levels[groups] = np.ceil(wanted).astype(np.int64)[:, None]
    return levels


def _heaviest(cells: Cells) -> Ints:
    """[cells] cost of the heaviest sample."""
    heaviest = np.zeros(len(cells.count), np.int64)
    np.maximum.at(heaviest, cells.cell, cells.costs)
    return heaviest


def _promote(groups: Ints, step: int, wanted: Floats, loads: Ints, heaviest: Ints) -> None:
    """Cells with a sample above the level of their micro-batch change places with light cells of the one before."""
    high = np.flatnonzero(heaviest[groups[step]] > wanted[step])
    others = np.flatnonzero(heaviest[groups[step - 1]] <= wanted[step])
    low = others[rising(loads[groups[step - 1, others]])][: len(high)]
    high = high[falling(heaviest[groups[step, high]])]
    if len(low) < len(high):
        wanted[step] = heaviest[groups[step, high[len(low)]]]
        high = high[: len(low)]
    groups[step, high], groups[step - 1, low] = groups[step - 1, low], groups[step, high]
