"""The ranks of one component as a grid. Pure arithmetic: no torch, no processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

AXES = ("tp", "cp", "dp", "pp")
"""From the fastest running axis to the slowest, as megatron-core orders ranks."""


@dataclass(frozen=True)
class Coordinates:
    """Place of one rank in its component's grid."""

    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True)
class Grid:
    """Ranks that hold one component, in the order of their coordinates: `tp` runs fastest, then `cp`, `dp`, `pp`.

    `dp` fills what the other sizes leave; the caller makes sure that they divide the ranks.
    """

    ranks: tuple[int, ...]
    tp: int = 1
    cp: int = 1
    pp: int = 1
    ep: int = 1
    """Ranks that divide the experts: neighbours among those that hold the same layers and divide the tokens, first
    along `cp`, then along `dp`."""

    @property
    def dp(self) -> int:
        """Data-parallel size."""
        return len(self.ranks) // (self.tp * self.cp * self.pp)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Size of each axis."""
        return {"tp": self.tp, "cp": self.cp, "dp": self.dp, "pp": self.pp}

    def _position(self, rank: int) -> int | None:
        """Place in `ranks`, at once where these are neighbours in order."""
        guess = rank - self.ranks[0]
        if 0 <= guess < len(self.ranks) and self.ranks[guess] == rank:
            return guess
        return self._positions.get(rank)

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {rank: position for position, rank in enumerate(self.ranks)}

    @cached_property
    def _places(self) -> dict[int, Coordinates]:
        extents = [range(self.sizes[axis]) for axis in reversed(AXES)]
        return {rank: Coordinates(*reversed(at)) for rank, at in zip(self.ranks, product(*extents), strict=True)}

    @cached_property
    def replicas(self) -> tuple[tuple[int, ...], ...]:
        """Ranks of each data-parallel replica."""
        found: list[list[int]] = [[] for _ in range(self.dp)]
        for rank, place in self._places.items():
            found[place.dp].append(rank)
        return tuple(map(tuple, found))

    def place(self, rank: int) -> Coordinates | None:
        """Coordinates of a rank; None where it does not hold the component."""
        position = self._position(rank)
        if position is None:
            return None
        rest, at = position, []
        for axis in AXES:
            rest, index = divmod(rest, self.sizes[axis])
            at.append(index)
        return Coordinates(*at)

    def groups(self, axes: Sequence[str]) -> list[tuple[int, ...]]:
        """Ranks that differ along `axes` only: a partition of the grid, each part in the order of coordinates."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank, place in self._places.items():
            fixed = tuple(getattr(place, axis) for axis in AXES if axis not in axes)
            found.setdefault(fixed, []).append(rank)
        return [tuple(ranks) for ranks in found.values()]

    def expert_groups(self, axes: Sequence[str]) -> list[tuple[int, ...]]:
        """As `groups`, with the ranks that divide the tokens cut along `ep` and `edp` in place of `cp` and `dp`.

        Args:
            axes: Of `tp`, `ep` (different experts), `edp` (replicas of the same experts), `pp`.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for rank, place in self._places.items():
            edp, ep = divmod(place.dp * self.cp + place.cp, self.ep)
            at = {"tp": place.tp, "ep": ep, "edp": edp, "pp": place.pp}
            found.setdefault(tuple(at[axis] for axis in at if axis not in axes), []).append(rank)
        return [tuple(ranks) for ranks in found.values()]

    def select(self, **at: int) -> tuple[int, ...]:
        """Ranks at the given coordinates, e.g. `select(dp=0, pp=0)`."""
        return tuple(
            rank for rank, place in self._places.items() if all(getattr(place, axis) == at[axis] for axis in at)
        )

    def __str__(self) -> str:
        sizes = {**self.sizes, "ep": self.ep}
        return " ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1 or axis in ("tp", "dp"))


def ranks_text(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-7`, `ranks 0,2,4-6`."""
    ordered = sorted(ranks)
    runs: list[list[int]] = []
    for rank in ordered:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' if len(ordered) > 1 else ''} {text}"


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    small = [i for i in range(1, math.isqrt(number) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` closest to `wanted` as a ratio."""
    return min(divisors(number), key=lambda size: abs(math.log(size / max(wanted, 1))))
