"""Local search: bins above their level, or cells above a cap, give a sample away or swap it for a smaller one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loongforge.data.balance.cells import Cells
from loongforge.data.balance.types import Floats, Ints
from loongforge.data.balance.whole import falling, rising

_WIDTH = 6  # samples of a bin that are looked at in a round
_CHUNK = 60_000  # exchanges weighed in a round
_ROUNDS, _PATIENCE = 60, 10  # at most; without any gain
_ROUNDS_FOR_CAPS, _PATIENCE_FOR_CAPS = 600, 40  # an answer must be found
_STEPS = 1 << 40  # excesses are ordered to such a part of a level


@dataclass
class Effort:
    """What may still be tried: exchanges weighed. A count and not a time, so that every process stops at the same."""

    left: int


def relieve(cells: Cells, levels: Ints | None, effort: Effort) -> bool:
    """Exchanges samples between pairs of bins until no bin is above its level, or no cell above a cap.

    Every exchange makes the sum of squared excesses smaller, and no cell empty.

    Args:
        levels: [bins] wanted at most, of cells within their caps, which stay so; None to see to the caps alone.

    Returns:
        Whether that was reached.
    """
    rounds, patience = (_ROUNDS, _PATIENCE) if levels is not None else (_ROUNDS_FOR_CAPS, _PATIENCE_FOR_CAPS)
    idle = 0
    for turn in range(rounds):
        if levels is None:
            over = cells.over_caps().reshape(cells.bins, -1).max(axis=1)
        else:
            over = (cells.loads - levels) / max(float(levels.max()), 1.0)
        full = over > 0
        if not full.any():
            return True
        givers, takers = np.flatnonzero(full), np.flatnonzero(~full)
        if not len(takers) or effort.left <= 0 or idle > patience:
            return False
        steps = np.rint(over * _STEPS).astype(np.int64)
        givers, takers = givers[falling(steps[givers])], takers[rising(steps[takers])]
        found = _round(cells, levels, givers, takers, turn, effort)
        idle = 0 if found else idle + 1
    return False


def _round(cells: Cells, levels: Ints | None, givers: Ints, takers: Ints, turn: int, effort: Effort) -> int:
    """One exchange for each giver, the best with some of the takers; no taker is asked by two. Number of exchanges."""
    bin_of_cell = cells.count.reshape(cells.bins, -1).sum(axis=1)
    width = int(min(_WIDTH, max(bin_of_cell[givers].max(), bin_of_cell[takers].max())))
    each = width * (width + 1)
    givers = givers[: max(min(len(takers), _CHUNK // each), 1)]
    asked = max(min(len(takers) // len(givers), _CHUNK // (len(givers) * each)), 1)
    blocks = len(takers) // len(givers)
    block = (np.arange(asked) * blocks // asked + turn) % blocks
    partners = takers[np.arange(len(givers))[:, None] + len(givers) * block]  # [givers, asked]
    effort.left -= partners.size * each + len(cells.costs) // 8

    members = cells.members(np.concatenate([givers, partners.ravel()]), width, turn)
    out, back = members[: len(givers)], members[len(givers) :].reshape(*partners.shape, width)
    nothing = np.full((*partners.shape, 1), len(cells.costs))
    back = np.concatenate([back, nothing], axis=2)  # [givers, asked, width + 1]
    target = _roomiest(cells)[partners]
    gain = _gains(cells, levels, givers, partners, out, back, target)

    best = gain.reshape(len(givers), -1).argmax(axis=1)
    rows = np.arange(len(givers))
    good = gain.reshape(len(givers), -1)[rows, best] > 1e-12
    rows, best = rows[good], best[good]
    partner, pair = np.divmod(best, each)
    given, taken = out[rows, pair // (width + 1)], back[rows, partner, pair % (width + 1)]
    swapped = taken < len(cells.costs)
    to = np.where(swapped, cells.cell[np.where(swapped, taken, 0)], target[rows, partner])
    home = cells.cell[given]
    cells.move(np.concatenate([given, taken[swapped]]), np.concatenate([to, home[swapped]]))
    return len(rows)


def _roomiest(cells: Cells) -> Ints:
    """[bins] the cell of each bin that a sample without a counterpart would go to."""
    if cells.per_bin == 1:
        return np.arange(cells.bins)
    room = cells.over_caps() if cells.limits else cells.count
    return np.arange(cells.bins) * cells.per_bin + room.reshape(cells.bins, -1).argmin(axis=1)


def _gains(
    cells: Cells, levels: Ints | None, givers: Ints, partners: Ints, out: Ints, back: Ints, target: Ints
) -> Floats:
    """[givers, asked, width, width + 1] by how much the squared excesses fall when `out` goes and `back` comes."""
    nobody = len(cells.costs)
    home = cells.cell[np.minimum(out, nobody - 1)]
    there = np.where(back < nobody, cells.cell[np.minimum(back, nobody - 1)], target[..., None])
    shape = (*partners.shape, out.shape[1], back.shape[2])
    gain, allowed = np.zeros(shape), np.ones(shape, bool)
    if levels is not None:
        scale = max(float(levels.max()), 1.0)
        over, change = (cells.loads - levels) / scale, _changes(cells.costs, out, back, scale)
        _add_relief(gain, over[givers][:, None, None, None], over[partners][..., None, None], change)
        change *= 1e-9
        gain -= change  # of equal ones the smallest
    for limit, held in zip(cells.limits, cells.held, strict=True):
        above, scale = held - limit.cap, float(max(limit.cap, 1))
        at_home, at_partner = above[home][:, None, :, None], above[there][:, :, None, :]
        if levels is None:
            _add_relief(gain, at_home / scale, at_partner / scale, _changes(limit.sizes, out, back, scale))
        else:
            change = _changes(limit.sizes, out, back, 1.0)
            allowed &= change >= at_home
            allowed &= -change >= at_partner
    lonely = (cells.count[home] == 1)[:, None, :, None] & (back == nobody)[:, :, None, :]
    allowed &= ~(lonely | (out == nobody)[:, None, :, None])
    return np.where(allowed, gain, -np.inf)


def _changes(sizes: Ints, out: Ints, back: Ints, scale: float) -> Floats:
    """What leaves the giver, over `scale`."""
    last = len(sizes) - 1
    leaves = np.where(out <= last, sizes[np.minimum(out, last)], 0) / scale
    comes = np.where(back <= last, sizes[np.minimum(back, last)], 0) / scale
    return leaves[:, None, :, None] - comes[:, :, None, :]


def _add_relief(gain: Floats, home: Floats, there: Floats, change: Floats) -> None:
    """Adds by how much the squared excesses of both ends fall."""
    for end in (home, there):
        if (end > 0).any():
            gain += np.square(np.maximum(end, 0.0))
    rest = np.subtract(home, change)
    np.maximum(rest, 0.0, out=rest)
    rest *= rest
    gain -= rest
    np.add(there, change, out=rest)
    np.maximum(rest, 0.0, out=rest)
    rest *= rest
    gain -= rest
