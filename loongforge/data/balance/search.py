"""The last resort for few samples under tight caps: depth-first search for any assignment that fits."""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Limit
from loongforge.data.balance.types import Ints

_MOST_SAMPLES = 200
_STEPS = 40_000


def search(limits: list[Limit], samples: int, cells: int) -> Ints | None:
    """[samples] cell of each, or None where none was found in a fixed number of steps.

    Samples from the largest to the smallest, each in the fullest cell first; of cells that hold the same one is tried.
    """
    if samples > _MOST_SAMPLES or not limits:
        return None
    share = np.max([limit.sizes / max(limit.cap, 1) for limit in limits], axis=0)
    order = np.argsort(-share, kind="stable").tolist()
    sizes = [tuple(int(limit.sizes[sample]) for limit in limits) for sample in order]
    rooms = [tuple(limit.cap for limit in limits) for _ in range(cells)]
    chosen: list[int] = []
    options = [_options(rooms, sizes[0])] if sizes else []
    for _ in range(_STEPS):
        if len(chosen) == samples:
            answer = np.empty(samples, np.int64)
            answer[order] = chosen
            return answer
        if options[-1]:
            cell = options[-1].pop()
            rooms[cell] = _less(rooms[cell], sizes[len(chosen)])
            chosen.append(cell)
            options.append(_options(rooms, sizes[len(chosen)]) if len(chosen) < samples else [])
        else:
            options.pop()
            if not chosen:
                return None
            cell = chosen.pop()
            rooms[cell] = _less(rooms[cell], tuple(-size for size in sizes[len(chosen)]))
    return None


def _less(room: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a - b for a, b in zip(room, size, strict=True))


def _options(rooms: list[tuple[int, ...]], size: tuple[int, ...]) -> list[int]:
    """Cells with room, the roomiest first: the last one is tried first."""
    first_of = {room: cell for cell, room in reversed(list(enumerate(rooms))) if min(_less(room, size)) >= 0}
    return [first_of[room] for room in sorted(first_of, reverse=True)]
