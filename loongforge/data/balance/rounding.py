"""Equal units cannot be split: U of them take D ranks ceil(U / D) turns in every micro-batch.

With tiles of one size that rounding up costs percents, K times a step. Swaps of samples of nearly the same length
between micro-batches make the number of units of most a multiple of D, so that the step rounds up once.
"""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells
from loongforge.data.balance.types import Ints

_SHARE = 10  # of a unit, for all micro-batches together, may be lost to win some
_NEIGHBOURS = 24  # a sample is compared with so many of the next shorter ones
_MOST = 150_000  # samples of middle length that are looked at


def round_units(cells: Cells, units: Ints, unit_cost: int, micro_batch: Ints, ranks: int) -> None:
    """Moves samples between cells. Caps are kept, and micro-batches get longer by a small part of a unit at most.

    Args:
        units: [n] of every sample, all of one cost; samples falling by cost.
        micro_batch: [cells]
    """
    steps = len(micro_batch) // ranks
    parts = np.bincount(micro_batch[cells.cell], weights=units, minlength=steps).astype(np.int64) % ranks
    up = -(-int(parts.sum()) // ranks)  # so many have to round up
    by_part = np.argsort(-parts, kind="stable").tolist()
    tops = np.zeros(steps, np.int64)
    np.maximum.at(tops, micro_batch, cells.loads)
    tops += unit_cost // (_SHARE * steps)
    room = {step: ranks - int(parts[step]) for step in by_part[:up]}
    for step in by_part[up:][::-1]:
        shed = int(parts[step])
        if shed > sum(room.values()):
            continue
        for other in room:
            moved = _shift(cells, units, micro_batch, tops, step, other, min(shed, room[other]))
            shed, room[other] = shed - moved, room[other] - moved


def _shift(cells: Cells, units: Ints, micro_batch: Ints, tops: Ints, source: int, target: int, wanted: int) -> int:
    """Swaps samples so that up to `wanted` units go from one micro-batch to another; how many went."""
    moved = 0
    for apart in range(1, _NEIGHBOURS + 1):
        if moved == wanted:
            break
        skipped = max(len(units) - _MOST, 0) // 2
        step = micro_batch[cells.cell[skipped : len(units) - skipped]]
        down = np.flatnonzero((step[:-apart] == source) & (step[apart:] == target)) + skipped
        up = np.flatnonzero((step[:-apart] == target) & (step[apart:] == source)) + skipped
        giver, taker = np.concatenate([down, up + apart]), np.concatenate([down + apart, up])
        gain = units[giver] - units[taker]
        good = np.flatnonzero((gain > 0) & (gain <= wanted - moved))
        good = good[np.argsort(np.minimum(giver, taker)[good], kind="stable")]
        giver, taker = giver[good], taker[good]
        fits = _fits(cells, giver, taker, micro_batch, tops) & _fits(cells, taker, giver, micro_batch, tops)
        giver, taker = _apart(cells.cell, giver[fits], taker[fits])
        gains = np.cumsum(units[giver] - units[taker])
        count = int(np.searchsorted(gains, wanted - moved, side="right"))
        giver, taker = giver[:count], taker[:count]
        cells.move(np.concatenate([giver, taker]), np.concatenate([cells.cell[taker], cells.cell[giver]]))
        moved += int(gains[count - 1]) if count else 0
    return moved


def _fits(cells: Cells, goes: Ints, comes: Ints, micro_batch: Ints, tops: Ints) -> np.ndarray:
    """Whether the cell of one sample keeps its caps and the level of its micro-batch with another in its place."""
    cell = cells.cell[goes]
    fits = cells.loads[cell] + cells.costs[comes] - cells.costs[goes] <= tops[micro_batch[cell]]
    for limit, held in zip(cells.limits, cells.held, strict=True):
        fits &= held[cell] + limit.sizes[comes] - limit.sizes[goes] <= limit.cap
    return fits


def _apart(cell: Ints, giver: Ints, taker: Ints) -> tuple[Ints, Ints]:
    """Of the pairs those whose cells no pair before names."""
    named = np.stack([cell[giver], cell[taker]], axis=1).ravel()
    first = np.zeros(len(named), bool)
    first[np.unique(named, return_index=True)[1]] = True
    free = first.reshape(-1, 2).all(axis=1)
    return giver[free], taker[free]
