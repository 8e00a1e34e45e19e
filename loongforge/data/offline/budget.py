"""What a packed row may hold, and what samples make of it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loongforge.data.balance import pack
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import SampleMeta
from loongforge.parallel.images import total

_LONG = 4  # a sample above this part of a row is long


@dataclass(frozen=True)
class Budget:
    """Limits of a row."""

    tokens: int
    patches: int | None = None
    """Of all images together; None: any number."""


@dataclass(frozen=True)
class Measured:
    """What a sample takes of a budget."""

    tokens: int
    patches: int

    @classmethod
    def of(cls, meta: SampleMeta, processor: SampleProcessor, budget: Budget) -> Measured:
        """From its metadata."""
        shapes = [shape for tiles in processor.images(meta.image_sizes) for shape in tiles]
        return cls(meta.text_tokens + total(shapes, "tokens"), total(shapes, "patches"))

    def above(self, budget: Budget) -> str | None:
        """Why no row can hold it; None: one can."""
        if self.tokens > budget.tokens:
            return f"it is {self.tokens} tokens long, and a row holds {budget.tokens}"
        if budget.patches is not None and self.patches > budget.patches:
            return f"its images have {self.patches} patches, and a row holds {budget.patches}"
        return None


def rows_of(samples: Sequence[Measured], budget: Budget) -> list[list[int]]:
    """Numbers of the samples of each row, ascending; rows in the order of their first ones."""
    if not samples:
        return []
    tokens, patches = (np.array([getattr(one, name) for one in samples], np.int64) for name in ("tokens", "patches"))
    rows = _mixed(tokens.tolist(), budget.tokens)
    if budget.patches is not None and max(int(patches[row].sum()) for row in rows) > budget.patches:
        bins = pack(tokens, budget.tokens, patches, budget.patches)
        parts = np.split(np.argsort(bins, kind="stable"), np.cumsum(np.bincount(bins))[:-1])
        rows = [part.tolist() for part in parts]
    return sorted(sorted(row) for row in rows)


def _mixed(tokens: list[int], budget: int) -> list[list[int]]:
    """Each sample into the fullest row that has room for it.

    Long samples come first, from the longest on, as they leave the holes that the others fill. These come in the order
    of the data: best-fit-decreasing throughout is not fuller, but puts samples of one length, and so often of one
    kind, into a row.
    """
    long = [number for number, size in enumerate(tokens) if size * _LONG > budget]
    rest = [number for number, size in enumerate(tokens) if size * _LONG <= budget]
    rows: list[list[int]] = []
    rooms: list[int] = []  # the different numbers of tokens that rows have room for, ascending
    having: dict[int, list[int]] = {}  # rows by that number
    for number in [*sorted(long, key=lambda number: -tokens[number]), *rest]:
        place = bisect_left(rooms, tokens[number])
        if place == len(rooms):
            room, row = budget, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = having[room].pop()
            if not having[room]:
                rooms.pop(place)
        rows[row].append(number)
        left = room - tokens[number]
        if not having.get(left):
            insort(rooms, left)
        having.setdefault(left, []).append(row)
    return rows
