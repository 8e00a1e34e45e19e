"""First placements: evenly over bins, or bin by bin up to a level. A round serves all bins at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loongforge.data.balance.types import Ints
from loongforge.data.balance.whole import falling, rising

_LONG = 48  # samples per bin above which most are dealt out in turns
_ENOUGH = 500  # a bin is full when less than a 500th of its level is free


def spread(costs: Ints, loads: Ints) -> Ints:
    """Longest processing time first (Graham 1969): each in turn to the bin with the least; all that no later choice
    depends on in one round.

    Args:
        costs: [n] falling.
        loads: [bins] what the bins hold already; brought up to date.

    Returns:
        [n] bin of each.
    """
    bins, place = np.empty(len(costs), np.int64), 0
    dealt = _dealt(len(costs), len(loads))
    if dealt.any():
        bins[dealt] = _deal(costs[dealt], loads)
        rest = np.flatnonzero(~dealt)
        bins[rest] = spread(costs[rest], loads)
        return bins
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


def _dealt(count: int, bins: int) -> np.ndarray:
    """[count] which samples are dealt out in turns: all but the heaviest few per bin and every so many of the rest."""
    dealt = np.zeros(count, bool)
    if count > _LONG * bins:
        dealt[_LONG // 3 * bins :] = True
        dealt[:: max(count // (_LONG // 3 * bins), 2)] = False
    return dealt


def _deal(costs: Ints, loads: Ints) -> Ints:
    """Forth and back over the bins, so that every two turns give each bin about the same."""
    turn, place = np.divmod(np.arange(len(costs)), len(loads))
    bins = np.where(turn % 2, len(loads) - 1 - place, place)
    loads += np.bincount(bins, weights=costs, minlength=len(loads)).astype(np.int64)
    return bins


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
