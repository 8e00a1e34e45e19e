"""First placements: evenly over bins, or bin by bin up to a level. A round serves all bins at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loongforge.data.balance.types import Ints
from loongforge.data.balance.whole import falling, rising

_LONG = 48  # samples per bin above which most are dealt out in turns,
_HEAVY = 16  # all but so many of the heaviest and as many others
_SMALLEST_PART = 1 / 64  # a bin that lacks less, of what the emptiest lacks, is not dealt to
_ENOUGH = 500  # a bin is full when less than a 500th of its level is free


def spread(costs: Ints, loads: Ints) -> Ints:
    """To the bin with the least, from the heaviest on. Of very many per bin most are dealt out in turns.

    Args:
        costs: [n] falling.
        loads: [bins] what the bins hold already; brought up to date.

    Returns:
        [n] bin of each.
    """
    heavy = _HEAVY * len(loads)
    if len(costs) <= _LONG * len(loads):
        return _longest_first(costs, loads)
    bins = np.empty(len(costs), np.int64)
    bins[:heavy] = _longest_first(costs[:heavy], loads)
    last = np.arange(heavy, len(costs), max((len(costs) - heavy) // heavy, 2))  # of all sizes, to even out what remains
    dealt = np.ones(len(costs), bool)
    dealt[:heavy] = False
    dealt[last] = False
    bins[dealt] = _deal(costs[dealt], loads, int(costs[heavy:].sum()))
    bins[last] = _longest_first(costs[last], loads)
    return bins


def _longest_first(costs: Ints, loads: Ints) -> Ints:
    """Longest processing time first (Graham 1969): each in turn to the bin with the least; all that no later choice
    depends on in one round."""
    bins, place = np.empty(len(costs), np.int64), 0
    while place < len(costs):
        order = rising(loads)[: len(costs) - place]
        before = loads[order]
        after = before + costs[place : place + len(order)]
        # The next bin is the least loaded one unless a bin of this round, with its new sample, holds less.
        in_turn = before[1:] <= np.minimum.accumulate(after)[:-1]
        count = len(order) if in_turn.all() else 1 + int(np.argmin(in_turn))
        bins[place : place + count] = order[:count]
        loads[order[:count]] = after[:count]
        place += count
    return bins


def _deal(costs: Ints, loads: Ints, to_come: int) -> Ints:
    """Back and forth over the bins; one that has more already takes part in fewer turns.

    Args:
        to_come: cost of these and of all others that are still to be placed.
    """
    least = np.sort(loads)
    levels = (np.cumsum(least) + to_come) // np.arange(1, len(loads) + 1)
    level = levels[max(int((least <= levels).sum()), 1) - 1]  # to which all bins below it can be filled
    wanted = np.maximum(level - loads, 0) / max(int(level - least[0]), 1)
    takers = np.flatnonzero(wanted >= _SMALLEST_PART)
    takers = takers if len(takers) else np.arange(len(loads))
    part = wanted[takers] if wanted.any() else np.ones(len(takers))
    turns = np.arange(int((len(costs) + len(takers)) / part.sum()) + 2)[:, None]
    takes = np.floor((turns + 1) * part) > np.floor(turns * part)
    bins = np.broadcast_to(takers, takes.shape).copy()
    bins[1::2], takes[1::2] = bins[1::2, ::-1].copy(), takes[1::2, ::-1].copy()
    chosen = bins[takes][: len(costs)]
    loads += np.bincount(chosen, weights=costs, minlength=len(loads)).astype(np.int64)
    return chosen


def fill(
    costs: Ints, tokens: Ints, *, level: int, bins: int, token_cap: int, cost_of: Callable[[Ints], Ints], spare: int
) -> Ints:
    """Fills bins up to a level, and to the token cap: the largest sample that still fits in each, again and again.

    Args:
        costs, tokens: [n] falling, both.
        cost_of: cost of a number of tokens, so that a room in tokens can be said as a cost.
        spare: how many samples have to be left over.

    Returns:
        [n] bin of each, -1 where it is left over.
    """
    out = np.full(len(costs), -1)
    left = np.arange(len(costs))
    free, room, turn = np.full(bins, level), np.full(bins, token_cap), np.arange(bins)
    while len(left) > spare:
        fits = np.minimum(free, cost_of(room))
        order = falling(fits)
        # Bins take turns from the one with most room; each starts below what the one before it took.
        first = np.searchsorted(-costs[left], -fits[order])
        chosen = np.maximum.accumulate(first - turn) + turn
        good = (chosen < len(left)) & (fits[order] > level // _ENOUGH)
        good &= np.cumsum(good) <= len(left) - spare
        if not good.any():
            break
        bin_, sample = order[good], left[chosen[good]]
        out[sample] = bin_
        free[bin_] -= costs[sample]
        room[bin_] -= tokens[sample]
        left = np.delete(left, chosen[good])
    return out
