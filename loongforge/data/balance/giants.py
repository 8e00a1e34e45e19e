"""Giants of a pipeline: samples heavier than an ordinary cell.

The largest cell of a rank counts P times. Giants of like size on one rank pay for that once, so as few ranks as
possible get giants, and each as many as it can take in the time that all ranks take.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from loongforge.data.balance.types import Ints

_HALVINGS = 12


def share_ranks(costs: Ints, ranks: int, steps: int, stages: int) -> tuple[Ints, Ints]:
    """Puts giants on ranks for the shortest time that has room for all the rest.

    Args:
        costs: [n] of samples, falling.
        steps: micro-batches of a rank.
        stages: how often the largest cell of a rank counts.

    Returns:
        rank of each of the heaviest samples, as many as there are giants, and [ranks] room of a rank's other cells.
    """
    total = int(costs.sum())
    low = max(-(-total * (steps + stages - 1) // (ranks * steps)), stages * int(costs.max(initial=0)))
    if (shared := _shared(costs, total, low, ranks, steps, stages)) is not None:
        return shared
    step = max(low >> _HALVINGS, 1)
    high = 2 * low
    while (shared := _shared(costs, total, high, ranks, steps, stages)) is None:
        high *= 2
    while high - low > step:
        middle = (low + high) // 2
        attempt = _shared(costs, total, middle, ranks, steps, stages)
        low, high, shared = (middle, high, shared) if attempt is None else (low, middle, attempt)
    return shared


def _shared(costs: Ints, total: int, time: int, ranks: int, steps: int, stages: int) -> tuple[Ints, Ints] | None:
    """The same for a given time; None where it is too short."""
    level = time // (steps + stages - 1)  # of the cells of a rank without giants
    left = costs[: int(np.searchsorted(-costs, -level))][::-1].tolist()  # rising
    numbers = list(range(len(left) - 1, -1, -1))
    rank_of, rooms = np.empty(len(left), np.int64), np.full(ranks, level)
    rank, capacity = 0, 0
    while left:
        if rank == ranks:
            return None
        room = time - stages * left[-1]
        rank_of[numbers.pop()] = rank
        left.pop()
        taken = 1
        while taken < steps and (at := bisect_right(left, room)):
            room -= left.pop(at - 1)
            rank_of[numbers.pop(at - 1)] = rank
            taken += 1
        rooms[rank] = min(room // (steps - taken), level) if taken < steps else 0
        capacity += int(rooms[rank]) * (steps - taken)
        rank += 1
    capacity += (ranks - rank) * steps * level
    return (rank_of, rooms) if capacity >= total - int(costs[: len(rank_of)].sum()) else None
