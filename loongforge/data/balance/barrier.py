"""Ranks wait for each other once per step: encoder and language model of a sample are one cost of its rank."""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells, fill_empty
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.feasible import within_caps
from loongforge.data.balance.problem import Problem
from loongforge.data.balance.spread import spread
from loongforge.data.balance.types import Floats, Ints
from loongforge.data.balance.whole import falling, rising

_EFFORT = 1_000_000
_LAST = 32  # samples per cell that are placed one by one
_GOAL = 1.0005  # close enough to the mean
_KEPT_AT_MOST = 0.97  # smaller steps than this are not tried


def one_barrier(problem: Problem) -> Ints | None:
    """[n] cell of every sample, rank * K + micro-batch: ranks of equal cost. None where the caps cannot be kept."""
    order = falling(problem.both)
    rank = np.empty(len(order), np.int64)
    rank[order] = spread(problem.both[order], np.zeros(problem.ranks, np.int64))
    cells = Cells(problem.both, problem.limits, _split(problem, rank), problem.cells, problem.micro_batches)
    if len(order) >= problem.cells:
        fill_empty(cells)
    if not cells.is_feasible():
        single = Cells(problem.both, problem.limits, cells.cell, problem.cells)
        fitting = within_caps(single)
        if fitting is None:
            return None
        cells = Cells(
            problem.both,
            problem.limits,
            _ranked(fitting, problem.ranks)[fitting.cell],
            problem.cells,
            problem.micro_batches,
        )
    return _levelled(cells).cell


def _levelled(cells: Cells) -> Cells:
    """The best that exchanges lead to."""
    effort, best, keep = Effort(_EFFORT), cells.copy(), 0.25
    mean = max(int(cells.costs.sum()) / cells.bins, int(cells.costs.max(initial=0)))
    while keep < _KEPT_AT_MOST:
        top = int(cells.loads.max(initial=0))
        if top <= mean * _GOAL or effort.left <= 0:
            break
        reached = relieve(cells, np.full(cells.bins, int(mean + (top - mean) * keep)), effort)
        if cells.loads.max() < best.loads.max() and cells.is_feasible():
            best = cells.copy()
        if not reached:
            keep = (1 + keep) / 2
    return best


def _split(problem: Problem, rank: Ints) -> Ints:
    """[n] a cell of each sample's rank: from the one with the most tokens on, to the cell with the least of any cap.
    Of very many samples most are dealt out back and forth."""
    order = rising(rank)  # by rank, and as samples come: the most tokens first
    counts = np.bincount(rank, minlength=problem.ranks)
    starts, steps = np.cumsum(counts) - counts, problem.micro_batches
    dealt = np.maximum(counts - _LAST * steps, 0) // (2 * steps) * (2 * steps)
    place = np.arange(len(rank)) - np.repeat(starts, counts)
    some = np.flatnonzero(place < np.repeat(dealt, counts))
    turn, slot = np.divmod(place[some], steps)
    some, cell = order[some], rank * steps
    cell[some] += np.where(turn % 2, steps - 1 - slot, slot)

    shares = _shares(problem)
    held = [np.bincount(cell[some], weights=of[some], minlength=problem.cells) for of in shares.T]
    loads = np.stack(held, axis=1).astype(np.float64).reshape(problem.ranks, steps, -1)
    for number in range(int((counts - dealt).max(initial=0))):
        ranks = np.flatnonzero(counts - dealt > number)
        sample = order[starts[ranks] + dealt[ranks] + number]
        chosen = (loads[ranks] + shares[sample][:, None]).max(axis=2).argmin(axis=1)
        loads[ranks, chosen] += shares[sample]
        cell[sample] += chosen
    return cell


def _shares(problem: Problem) -> Floats:
    """[n, limits] what each takes of the caps; of all tokens where there is none. Nothing takes nothing."""
    if not problem.limits:
        return (problem.tokens[:, None] + 1).astype(np.float64)
    return np.stack([(limit.sizes + 1e-3) / max(limit.cap, 1) for limit in problem.limits], axis=1)


def _ranked(cells: Cells, ranks: int) -> Ints:
    """[cells] new number of every cell, rank * K + micro-batch: in turns, the heaviest to the rank with the least."""
    number, loads = np.empty(len(cells.count), np.int64), np.zeros(ranks, np.int64)
    steps = len(cells.count) // ranks
    for step, some in enumerate(falling(cells.loads).reshape(steps, ranks)):
        rank = rising(loads)
        number[some] = rank * steps + step
        loads[rank] += cells.loads[some]
    return number
