"""Which image rows travel from which rank to which: pure functions that every rank evaluates alike. No torch here.

A *row* is one image token's embedding. Rows of an LLM replica's micro-batches are numbered in order of appearance.
Holders and wanters each list rows in the order in which their tensors hold them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loongforge.parallel.grid import Grid
from loongforge.parallel.layout import Layout


@dataclass(frozen=True)
class Transfer:
    """Rows that one rank sends to another (or keeps, where both are the same)."""

    source: int
    target: int
    source_rows: np.ndarray
    """int64: places in what the source holds."""
    target_rows: np.ndarray
    """int64: places in what the target wants, in the same order."""


@dataclass(frozen=True)
class ImagePlan:
    """Who encodes the images of a micro-batch, and which of them a rank has read."""

    total: int
    """Images of the micro-batch."""
    held: np.ndarray
    """int64: those that this rank has read, ascending."""
    encoders: np.ndarray | None = None
    """int64 `[total]`: encoder replica of each, any of them; None: even shares of those that serve the LLM replica."""


def image_shares(
    layout: Layout, component: str, replica: int, num_images: int, patches: np.ndarray | None = None
) -> dict[int, range]:
    """How the encoder replicas that serve an LLM replica divide its images: evenly, each a run of neighbours.

    Args:
        layout: Of the run.
        component: `vision` or `projector`.
        replica: Of the LLM.
        num_images: Images of that replica that are encoded together.
        patches: int64 `[num_images]`: what is divided evenly; None: their number.

    Returns:
        Images of each serving encoder replica, in order; together they are `range(num_images)`.
    """
    grid = layout.grid(component)
    assert grid is not None
    total, ours = grid.dp, layout.dp
    # in units of 1 / (total * ours): encoder replica e covers [e * ours, (e + 1) * ours), ours [replica * total, ...)
    begin, end = replica * total, (replica + 1) * total
    ends = None if patches is None else 2 * np.cumsum(patches) - patches  # twice the middle of each image
    shares, before = {}, 0
    for encoder in range(begin // ours, -(-end // ours)):
        covered = min(end, (encoder + 1) * ours) - begin
        after = num_images * covered // total
        if patches is not None and ends is not None and covered < total:
            after = int(np.searchsorted(ends * total, 2 * int(patches.sum()) * covered, side="right"))
        shares[encoder] = range(before, after)
        before = after
    return shares


def plan_transfers(holds: Mapping[int, np.ndarray], wants: Mapping[int, np.ndarray]) -> list[Transfer]:
    """Who sends what, so that every rank gets each row that it wants exactly once.

    A rank keeps the rows that it holds itself; of several other holders of a row the wanters take turns.

    Args:
        holds: Rows by rank; a row may be held by several ranks.
        wants: Rows by rank; each held by some rank.
    """
    if not any(len(rows) for rows in wants.values()):
        return []
    size = 1 + max(int(rows.max()) for rows in (*holds.values(), *wants.values()) if len(rows))
    holders = [rank for rank in sorted(holds) if len(holds[rank])]
    where = np.full((len(holders), size), -1, np.int64)  # place of each row in what a holder has
    for index, rank in enumerate(holders):
        where[index, holds[rank]] = np.arange(len(holds[rank]))
    copies = (where >= 0).sum(0)
    transfers = []
    for turn, target in enumerate(sorted(wants)):
        rows = wants[target]
        if not len(rows):
            continue
        chosen = _choose(where[:, rows], copies[rows], turn, holders.index(target) if target in holders else None)
        for index in np.unique(chosen):
            places = np.flatnonzero(chosen == index)
            transfers.append(Transfer(holders[index], target, where[index, rows[places]], places))
    return transfers


def _choose(where: np.ndarray, copies: np.ndarray, turn: int, own: int | None) -> np.ndarray:
    """Index of the holder that each wanted row is taken from; `where` is `[holders, rows]`."""
    assert (copies > 0).all(), "a row that nobody holds"
    # neighbouring rows of one target come from one holder, other targets' from the next: few, even messages
    wanted = turn % copies
    order = np.cumsum(where >= 0, 0) - 1  # how many holders of the row stand before
    chosen = ((where >= 0) & (order == wanted)).argmax(0)
    return chosen if own is None else np.where(where[own] >= 0, own, chosen)


def sequence_slice(grid: Grid, rank: int, length: int, *, sequence_parallel: bool) -> np.ndarray:
    """Positions `[S_local]` of a row of `length` tokens that a rank of the LLM's first stage embeds.

    Context parallelism cuts the row into `2 * cp` chunks and gives rank i the chunks i and 2 * cp - 1 - i, so that the
    causal work is even; sequence parallelism cuts what that leaves into tp parts.
    """
    place = grid.place(rank)
    assert place is not None
    positions = context_positions(length, place.cp, grid.cp)
    if sequence_parallel:
        part = len(positions) // grid.tp
        positions = positions[place.tp * part : (place.tp + 1) * part]
    return positions


def context_positions(length: int, cp_rank: int, cp: int) -> np.ndarray:
    """Positions that context-parallel rank `cp_rank` works on, ascending."""
    if cp == 1:
        return np.arange(length)
    assert length % (2 * cp) == 0, "the loader pads rows to layout.sequence_multiple"
    chunk = length // (2 * cp)
    first, second = cp_rank * chunk, (2 * cp - 1 - cp_rank) * chunk
    return np.concatenate([np.arange(first, first + chunk), np.arange(second, second + chunk)])
