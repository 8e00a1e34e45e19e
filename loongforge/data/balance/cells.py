"""Samples in cells: what each cell holds, beside what it may hold."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np

from loongforge.data.balance.types import Floats, Ints
from loongforge.data.balance.whole import rising, sums


@dataclass(frozen=True)
class Limit:
    """A hard cap on something that samples bring into a cell."""

    name: str
    """tokens or patches"""
    sizes: Ints
    """[n] of every sample"""
    cap: int
    """of a cell"""


class Cells:
    """An assignment of samples to cells that can be changed. A bin is `per_bin` consecutive cells: what is levelled."""

    def __init__(self, costs: Ints, limits: list[Limit], cell: Ints, cells: int, per_bin: int = 1):
        self.costs, self.limits, self.cell, self.per_bin = costs, limits, cell.copy(), per_bin
        self.bins = cells // per_bin
        self.loads = sums(self.cell // per_bin, costs, self.bins)
        """[bins] cost of what each holds"""
        self.held = [sums(self.cell, limit.sizes, cells) for limit in limits]
        """[cells] for each limit what each cell holds"""
        self.count = np.bincount(self.cell, minlength=cells)
        """[cells] samples"""

    def copy(self) -> Cells:
        """The same assignment, to change apart."""
        twin = copy(self)
        twin.cell, twin.loads, twin.count = self.cell.copy(), self.loads.copy(), self.count.copy()
        twin.held = [held.copy() for held in self.held]
        return twin

    def over_caps(self) -> Floats:
        """[cells] largest share by which a cell is above a cap; not above 0 where it is within all."""
        over = np.full(len(self.count), -1.0)
        for limit, held in zip(self.limits, self.held, strict=True):
            np.maximum(over, (held - limit.cap) / max(limit.cap, 1), out=over)
        return over

    def is_feasible(self) -> bool:
        """No cap is exceeded."""
        return bool((self.over_caps() <= 0).all())

    def move(self, samples: Ints, cells: Ints) -> None:
        """Each of the samples to its new cell; no sample twice."""
        old = self.cell[samples]
        for sizes, sums_, per in self._tallies():
            np.subtract.at(sums_, old // per, sizes[samples])
            np.add.at(sums_, cells // per, sizes[samples])
        np.subtract.at(self.count, old, 1)
        np.add.at(self.count, cells, 1)
        self.cell[samples] = cells

    def _tallies(self) -> list[tuple[Ints, Ints, int]]:
        """(what a sample brings, sums of it, cells of a sum)."""
        held = [(limit.sizes, held, 1) for limit, held in zip(self.limits, self.held, strict=True)]
        return [(self.costs, self.loads, self.per_bin), *held]

    def members(self, bins: Ints, width: int, turn: int) -> Ints:
        """[len(bins), width] samples of each bin, filled up with n. Of a bin with more: some, others in each turn."""
        wanted = np.zeros(self.bins, bool)
        wanted[bins] = True
        bin_of = self.cell // self.per_bin if self.per_bin > 1 else self.cell
        samples = np.flatnonzero(wanted[bin_of])
        if not len(samples):
            return np.full((len(bins), width), len(self.costs))
        samples = samples[rising(bin_of[samples])]
        counts = np.bincount(bin_of[samples], minlength=self.bins)
        starts = (np.cumsum(counts) - counts)[bins, None]
        counts, column = counts[bins, None], np.arange(width)
        place = np.where(counts <= width, column, (column * counts // width + turn) % np.maximum(counts, 1))
        return np.where(column < counts, samples[np.minimum(starts + place, len(samples) - 1)], len(self.costs))


def fill_empty(cells: Cells) -> None:
    """Gives every empty cell a sample of a cell that has several, the smallest ones first."""
    while (empty := np.flatnonzero(cells.count == 0)).size and (cells.count > 1).any():
        order = rising(cells.costs)
        cell = cells.cell[order]
        _, first = np.unique(cell, return_index=True)  # of each cell its smallest sample
        givers = order[np.sort(first)]
        givers = givers[cells.count[cells.cell[givers]] > 1][: len(empty)]
        cells.move(givers, empty[: len(givers)])
