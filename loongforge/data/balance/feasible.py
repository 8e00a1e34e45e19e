"""Assignments within the caps, however tight; and the error where there is none."""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells, Limit, fill_empty
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.packing import pack
from loongforge.data.balance.refit import refit
from loongforge.data.balance.search import search
from loongforge.data.balance.spread import spread
from loongforge.data.balance.types import Ints
from loongforge.data.balance.whole import falling, sums

_EFFORT = 8_000_000
_PARTS = 24


def within_caps(cells: Cells) -> Cells | None:
    """The assignment with few changes, else another one to as many cells; None where none is found."""
    if cells.is_feasible():
        return cells
    count = len(cells.count)
    if fewest(cells.limits) > count:
        return None
    if relieve(cells, None, Effort(_EFFORT)) or refit(cells):
        return cells
    cell = tight(cells.limits, len(cells.costs), count)
    if cell is None:
        return None
    found = Cells(cells.costs, cells.limits, cell, count, cells.per_bin)
    fill_empty(found)
    return found


def fewest(limits: list[Limit]) -> int:
    """Cells that are needed at least.

    Of samples above j / (k + 1) of a cap at most k / j fit into a cell, so such a sample takes j / k of one; for any k
    (the dual feasible functions of Fekete and Schepers 2001).
    """
    found = 0
    for limit in limits:
        cap = max(limit.cap, 1)
        found = max(found, -(-int(limit.sizes.sum()) // cap))
        for k in range(1, _PARTS + 1):
            whole, rest = np.divmod((k + 1) * limit.sizes, cap)
            taken = np.where(rest, whole * cap, k * limit.sizes)  # in 1 / (k cap)
            found = max(found, -(-int(taken.sum()) // (k * cap)))
    return found


def tight(limits: list[Limit], samples: int, cells: int) -> Ints | None:
    """[samples] cell of each, by best-fit-decreasing, then exchanges and subset sums, then a search; None where that
    does not fit."""
    if fewest(limits) > cells:
        return None
    packs = best_fit(limits, samples)
    if packs.max(initial=-1) < cells:
        return packs
    sizes = shares(limits, samples)
    for kept in (packs < cells, np.zeros(samples, bool)):
        cell = np.where(kept, packs, 0)
        left = np.flatnonzero(~kept)
        left = left[falling(sizes[left])]
        cell[left] = spread(sizes[left], sums(packs[kept], sizes[kept], cells))
        attempt = Cells(sizes, limits, cell, cells)
        if relieve(attempt, None, Effort(_EFFORT)) or (not kept.any() and refit(attempt)):
            return attempt.cell
    return search(limits, samples, cells)


def best_fit(limits: list[Limit], samples: int) -> Ints:
    """[samples] packs, as many as best-fit-decreasing needs."""
    by = {limit.name: limit for limit in limits}
    if "tokens" not in by or "patches" not in by:
        (limit,) = limits
        return pack(limit.sizes, limit.cap)
    return pack(by["tokens"].sizes, by["tokens"].cap, by["patches"].sizes, by["patches"].cap)


def shares(limits: list[Limit], samples: int) -> Ints:
    """[samples] the larger of the shares of the caps that each takes, in 2**-30."""
    share = np.zeros(samples, np.int64)
    for limit in limits:
        np.maximum(share, np.floor(limit.sizes * (2.0**30 / max(limit.cap, 1))).astype(np.int64), out=share)
    return share


def impossible(limits: list[Limit], samples: int, ranks: int, micro_batches: int) -> ValueError:
    """What to tell: whether there is none or none was found, why, and a number of micro-batches that works."""
    cells, least = ranks * micro_batches, fewest(limits)
    works = -(-(int(best_fit(limits, samples).max()) + 1) // ranks)
    sums = ", ".join(f"{int(x.sizes.sum())} {x.name} where {cells * x.cap} fit ({x.cap} a cell)" for x in limits)
    reason = (
        f"there is none: samples of these sizes need {least} cells at least, and there are {cells}"
        if least > cells
        else "none was found (by even spreading, best-fit-decreasing, exchanges, subset sums, a search), which does "
        "not prove that there is none"
    )
    return ValueError(
        f"no plan of {samples} samples for {ranks} ranks and {micro_batches} micro-batches keeps the caps: {sums}; "
        f"{reason}. It works with micro_batches={works}, or with larger caps"
    )
