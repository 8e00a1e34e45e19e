"""Whole numbers and orders that are the same in every process and on every machine.

Costs are rounded to integers once, so that no sum depends on its order. Orders come from sorting keys that all differ
(value and index in one integer): which of several equal values comes first never depends on the sorting algorithm.
"""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.types import Floats, Ints

_BITS = 52  # sums stay exact as float64 as well


def factor_for(costs: list[Floats], count: int) -> float:
    """A power of two: costs times it and rounded tell a billionth of the largest apart where `count` of them then sum
    to less than 2**52, and less where not. 0 where all costs are."""
    largest = max((float(of.max(initial=0.0)) for of in costs), default=0.0)
    bits = min(30, _BITS - int(count).bit_length())
    return 2.0 ** (bits - int(np.frexp(largest)[1])) if largest > 0 else 0.0


def rounded(costs: Floats) -> Ints:
    """The nearest whole numbers."""
    return np.rint(costs).astype(np.int64)


def rising(values: Ints) -> Ints:
    """Indices from the smallest value to the largest; the lower index first where they are equal."""
    if len(values) < 2:
        return np.arange(len(values))
    bits, low = (len(values) - 1).bit_length(), values.min()
    if int(values.max() - low).bit_length() + bits > 62:
        return np.argsort(values, kind="stable")
    keys = (values - low << bits) | np.arange(len(values))
    keys.sort()
    return keys & ((1 << bits) - 1)


def falling(values: Ints) -> Ints:
    """Indices from the largest value to the smallest; the lower index first where they are equal."""
    return rising(-values)


def sums(group: Ints, values: Ints, groups: int) -> Ints:
    """[groups] sum of the values of each group."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.int64)
