"""Caps that leave next to nothing free: some cells are emptied together and filled anew, by subset sums.

Where exchanges of samples have come to an end, some cells are still a few tokens above their cap, others a few below.
The sums that subsets of some samples have are the bits of one integer (`reach | reach << size` adds a sample), so which
samples fill a cell to its cap is known at once.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import chain, pairwise, repeat
from random import Random

import numpy as np

from loongforge.data.balance.cells import Cells

_FREE = (8, 24)  # samples of a cell that may leave it, the smallest ones
_MOST_CELLS = 6  # filled together
_ORDERS = (3, 6, 6, 12, 12, 24)  # of their samples that are tried; a round over the cells for each number,
_ROUNDS = 30  # and so many more
_EFFORT = 1_000  # samples that are weighed for each to be placed; of many so much less:
_MUCH, _MORE = 250_000, 100
_BITS = 1 << 14  # a sample in a sum of so many tokens counts twice


def refit(cells: Cells) -> bool:
    """Moves samples until no cell is above a cap; whether that was reached. No cell gets empty."""
    work = _Work(cells)
    reached = work.run()
    changed = np.flatnonzero(work.cell != cells.cell)
    cells.move(changed, work.cell[changed])
    return reached


class _Work:
    """The same assignment in lists, which are faster than arrays where few samples move at a time."""

    def __init__(self, cells: Cells):
        self.cell = cells.cell.copy()
        self.caps = [limit.cap for limit in cells.limits]
        self.sizes = [limit.sizes.tolist() for limit in cells.limits]
        self.held = [held.tolist() for held in cells.held]
        fills = [sum(held) / max(cap, 1) for held, cap in zip(self.held, self.caps, strict=True)]
        self.main = int(np.argmax(fills))  # the limit that leaves the least free
        self.members: list[list[int]] = [[] for _ in cells.count]
        for sample in np.argsort(cells.limits[self.main].sizes, kind="stable").tolist():
            self.members[self.cell[sample]].append(sample)  # the smallest first
        self.room: list[tuple[int, int]] = []  # what cells hold, and their numbers; others are no longer true
        self.effort = min(_EFFORT * len(self.cell), _MUCH + _MORE * len(self.cell))

    def run(self) -> bool:
        """Cells above a cap one after another, the worst first; round after round, with other cells in each."""
        for turn, orders in enumerate(chain(_ORDERS, repeat(_ORDERS[-1], _ROUNDS))):
            over = self._over()
            if not over or self.effort <= 0:
                break
            draw = Random(turn)
            self.room = [(held, cell) for cell, held in enumerate(self.held[self.main])]
            heapify(self.room)
            for cell in over:
                if self._excess([cell]) > 0:
                    self._mend(cell, orders, draw if turn else None)
        return not self._over()

    def _over(self) -> list[int]:
        excess = [(-above, cell) for cell in range(len(self.members)) if (above := self._excess([cell])) > 0]
        return [cell for _, cell in sorted(excess)]

    def _excess(self, group: list[int]) -> float:
        """By how much cells are above their caps, in caps."""
        of = zip(self.held, self.caps, strict=True)
        return sum(max(held[cell] - cap, 0) / max(cap, 1) for held, cap in of for cell in group)

    def _mend(self, cell: int, orders: int, draw: Random | None) -> None:
        """Fills a cell anew together with those that have the most room; when they have enough, with any (`draw`)."""
        group = [cell]
        while len(group) < min(_MOST_CELLS, len(self.members)) and self.effort > 0:
            one = draw.randrange(len(self.members)) if draw and self._has_room(group) else self._roomiest()
            if one is None:
                break
            if one in group:
                self.effort -= 1
                continue
            group.append(one)
            if self._filled_anew(group, orders, last=len(group) == _MOST_CELLS):
                break
        for one in group:
            heappush(self.room, (self.held[self.main][one], one))

    def _roomiest(self) -> int | None:
        while self.room:
            held, cell = heappop(self.room)
            if held == self.held[self.main][cell]:
                return cell
        return None

    def _has_room(self, group: list[int]) -> bool:
        of = zip(self.held, self.caps, strict=True)
        return all(sum(held[cell] for cell in group) <= cap * len(group) for held, cap in of)

    def _filled_anew(self, group: list[int], orders: int, last: bool) -> bool:
        """Whether all of a group are within their caps now; or where no cell is to join it, more nearly so."""
        if not last and not self._has_room(group):
            return False
        goal = self._excess(group) * 0.999 if last else 0.0
        pools = [sorted(sample for cell in group for sample in self.members[cell][:free]) for free in _FREE]
        for free, pool in zip(_FREE, pools, strict=True):
            if free > _FREE[0] and pool == pools[0]:
                break
            kept = [self.members[cell][free:] for cell in group]
            for order in range(orders):
                filled = self._filling(kept, pool, order)
                if all(filled) and self._excess_of(filled) <= goal:
                    self._put(group, filled)
                    return True
        return False

    def _filling(self, kept: list[list[int]], pool: list[int], order: int) -> list[list[int]]:
        """Samples of each cell: those it keeps, and of the pool what brings it nearest to its cap; the last has the
        rest."""
        sizes, cap = self.sizes[self.main], self.caps[self.main]
        pool = sorted(pool, key=lambda sample: _scrambled(sample, order) if order else -sizes[sample])
        filled = []
        for samples in kept[:-1]:
            target = max(cap - sum(sizes[sample] for sample in samples), 0)
            self.effort -= len(pool) * (1 + target // _BITS)
            taken = _nearest([sizes[sample] for sample in pool], target)
            filled.append(samples + [sample for sample, of in zip(pool, taken, strict=True) if of])
            pool = [sample for sample, of in zip(pool, taken, strict=True) if not of]
        return [*filled, kept[-1] + pool]

    def _excess_of(self, filled: list[list[int]]) -> float:
        of = zip(self.sizes, self.caps, strict=True)
        return sum(max(sum(sizes[s] for s in cell) - cap, 0) / max(cap, 1) for sizes, cap in of for cell in filled)

    def _put(self, group: list[int], filled: list[list[int]]) -> None:
        for cell, samples in zip(group, filled, strict=True):
            self.members[cell] = sorted(samples, key=lambda sample: (self.sizes[self.main][sample], sample))
            self.cell[samples] = cell
            for sizes, held in zip(self.sizes, self.held, strict=True):
                held[cell] = sum(sizes[sample] for sample in samples)


def _scrambled(number: int, turn: int) -> int:
    """A key to sort by: another order in each turn, with less work than `Random.shuffle`."""
    return ((number * 0x9E3779B1 + turn * 0x85EBCA77) ^ number << 7) * 0xC2B2AE3D & 0xFFFFFFFF


def _nearest(sizes: list[int], target: int) -> list[bool]:
    """Which of the sizes sum to the most that is not above a target; late ones only where that needs them."""
    reach, mask = [1], (1 << (target + 1)) - 1
    for size in sizes:
        reach.append((reach[-1] | reach[-1] << size) & mask)
    total = reach[-1].bit_length() - 1
    taken = []
    for size, (without, _) in zip(reversed(sizes), reversed(list(pairwise(reach))), strict=True):
        taken.append(not without >> total & 1)
        total -= size if taken[-1] else 0
    return taken[::-1]
