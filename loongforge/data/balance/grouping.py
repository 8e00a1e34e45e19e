"""Which cells form a micro-batch: those of like cost in the language model, or of like largest image unit.

A micro-batch costs as much as its heaviest cell, and in the encoder at least as much as its heaviest unit. Where cells
cost about the same, those with heavy units had better come together.
"""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells
from loongforge.data.balance.problem import Problem
from loongforge.data.balance.types import BatchMetadata, Ints
from loongforge.data.balance.whole import falling, sums


def grouped(problem: Problem, batch: BatchMetadata, cells: Cells) -> Ints:
    """[cells] micro-batch of every cell."""
    by_load = falling(cells.loads)
    if not len(problem.unit_costs) or problem.micro_batches == 1:
        return _numbered(by_load, problem.ranks)
    work, heaviest = _encoding(problem, batch, cells)
    best, least = by_load, _time(by_load, cells.loads, work, heaviest, problem.ranks)
    for fixed in range(min(problem.micro_batches - 1, 4)):
        rest = by_load[fixed * problem.ranks :]
        order = np.concatenate([by_load[: fixed * problem.ranks], rest[falling(heaviest[rest])]])
        time = _time(order, cells.loads, work, heaviest, problem.ranks)
        if time < least:
            best, least = order, time
    return _numbered(best, problem.ranks)


def _numbered(order: Ints, ranks: int) -> Ints:
    micro_batch = np.empty(len(order), np.int64)
    micro_batch[order] = np.arange(len(order)) // ranks
    return micro_batch


def _encoding(problem: Problem, batch: BatchMetadata, cells: Cells) -> tuple[Ints, Ints]:
    """[cells] cost of all units of a cell, and of its heaviest."""
    cell = np.empty(len(problem.order), np.int64)
    cell[problem.order] = cells.cell
    of_image = cell[batch.sample_of_image()]
    work = sums(of_image, batch.image_units * problem.unit_costs, problem.cells)
    heaviest = np.zeros(problem.cells, np.int64)
    np.maximum.at(heaviest, of_image, np.where(batch.image_units > 0, problem.unit_costs, 0))
    return work, heaviest


def _time(order: Ints, loads: Ints, work: Ints, heaviest: Ints, ranks: int) -> int:
    """Time of a step, the encoder taken at its bound, when micro-batches are cut from this order of cells."""
    shape = (-1, ranks)
    encoder = np.maximum(
        -(-work[order].reshape(shape).sum(axis=1) // ranks), heaviest[order].reshape(shape).max(axis=1)
    )
    return int(loads[order].reshape(shape).max(axis=1).sum() + encoder.sum())
