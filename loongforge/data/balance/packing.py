"""Packs of samples within a token budget: best-fit-decreasing on the histogram of lengths.

Best-fit-decreasing puts samples, from the longest to the shortest, each into the fullest pack that has room for it.
Packs with the same room are alike, and so are samples of one length: a step serves as many as there are of both
(cf. Krell et al. 2021, arXiv:2107.02027).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

import numpy as np

from loongforge.data.balance.packing_both import pack_both
from loongforge.data.balance.types import Ints
from loongforge.data.balance.whole import falling


def pack(lengths: Any, budget: int, patches: Any = None, patch_budget: int | None = None) -> Ints:
    """Pack of every sample.

    Args:
        lengths: [n] tokens.
        budget: tokens that a pack may hold.
        patches: [n] image patches, where they are limited too.
        patch_budget: patches that a pack may hold.

    Returns:
        [n] packs, numbered from 0.

    Raises:
        ValueError: a sample alone is above a budget, or a number is negative or not whole.
    """
    sizes = _checked("lengths", lengths, budget, "budget")
    if patch_budget is None:
        return _pack_lengths(sizes, int(budget))
    if patches is None:
        raise ValueError("patch_budget needs the patches of every sample")
    seen = _checked("patches", patches, patch_budget, "patch_budget")
    if len(seen) != len(sizes):
        raise ValueError(f"there are {len(seen)} patches for {len(sizes)} lengths")
    packs = _pack_lengths(sizes, int(budget))
    if np.bincount(packs, weights=seen).max(initial=0) <= patch_budget:
        return packs
    return pack_both(sizes, seen, int(budget), int(patch_budget))


def _checked(name: str, values: Any, budget: int, budget_name: str) -> Ints:
    array = np.asarray(values)
    sizes = array.astype(np.int64)
    if array.ndim != 1 or (sizes != array).any() or (sizes < 0).any():
        raise ValueError(f"{name} must be a list of whole numbers from 0 up")
    if len(sizes) and sizes.max() > budget:
        sample = int(sizes.argmax())
        raise ValueError(
            f"{name}[{sample}] is {sizes[sample]} and {budget_name} is {budget}: the sample fits in no pack"
        )
    return sizes


class _Shelf:
    """Open packs by the room they have left. Packs of equal room are kept as ranges of numbers."""

    def __init__(self) -> None:
        self._rooms: list[int] = []  # rising; those that some pack has
        self._packs: dict[int, list[tuple[int, int]]] = {}  # room -> (first, one past the last)

    def take(self, length: int) -> tuple[int, int, int] | None:
        """(room, first, one past the last) of packs with the least room for `length`."""
        at = bisect_left(self._rooms, length)
        if at == len(self._rooms):
            return None
        room = self._rooms[at]
        ranges = self._packs[room]
        first, stop = ranges.pop()
        if not ranges:
            del self._rooms[at], self._packs[room]
        return room, first, stop

    def put(self, room: int, first: int, stop: int) -> None:
        if first < stop:
            if room not in self._packs:
                insort(self._rooms, room)
            self._packs.setdefault(room, []).append((first, stop))


def _pack_lengths(lengths: Ints, budget: int) -> Ints:
    distinct, counts = np.unique(lengths, return_counts=True)
    shelf, opened = _Shelf(), 0
    runs: list[tuple[int, int, int]] = []  # first of some packs, how many, new samples in each; in the order of samples
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            room, first, stop = shelf.take(length) or (budget, opened, opened + count)
            # The fullest pack with room stays the fullest with room until it has none.
            each = min(room // length, count) if length else count
            packs = min(count // each, stop - first)
            if first == opened:
                opened += packs
            else:
                shelf.put(room, first + packs, stop)
            shelf.put(room - each * length, first, first + packs)
            runs.append((first, packs, each))
            count -= packs * each
    packs_of = np.empty(len(lengths), np.int64)
    packs_of[falling(lengths)] = _unrolled(runs)
    return packs_of


def _unrolled(runs: list[tuple[int, int, int]]) -> Ints:
    """Pack of every sample: pack after pack of each run, `each` times."""
    first, packs, each = np.array(runs, np.int64).reshape(-1, 3).T
    counts = packs * each
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + place // np.repeat(each, counts)
