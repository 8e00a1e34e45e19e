"""Which rank encodes each attention unit, in lock-step: every rank the same work in every micro-batch.

A rank keeps what its own samples bring up to nearly the mean; only what is above moves, in single units (tile, frame
group, image), to the ranks with the least. So few features travel, and no long video stays in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loongforge.data.balance.cells import Cells, Limit
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.spread import spread
from loongforge.data.balance.types import BatchMetadata, Ints
from loongforge.data.balance.whole import falling, rising, sums

_LEAST_KEPT, _MOST_KEPT = 0.85, 0.98  # of the mean; the rest is for evening out,
_UNITS = 8  # so many of the heaviest units
_GOAL = 1.002
_EFFORT = 400_000


def encoder_ranks(
    batch: BatchMetadata,
    unit_costs: Ints,
    rank: Ints,
    micro_batch: Ints,
    *,
    ranks: int,
    micro_batches: int,
    patch_cap: int | None,
) -> Ints:
    """[sum(image_units)] rank that encodes each unit.

    Args:
        unit_costs: [m] whole number, of one unit of every image.
        rank, micro_batch: [n] where the samples are; within `patch_cap`, as the answer is.
    """
    images_of = np.diff(batch.image_offsets)
    home, step_of = np.repeat(rank, images_of), np.repeat(micro_batch, images_of)
    step_of[batch.image_units == 0] = -1
    answer = np.repeat(home, batch.image_units)
    first = np.cumsum(batch.image_units) - batch.image_units
    for step in range(micro_batches):
        images = np.flatnonzero(step_of == step)
        if not len(images):
            continue
        moving = _even(
            unit_costs[images],
            batch.image_units[images],
            batch.patches_per_unit[images],
            home[images],
            ranks,
            patch_cap,
        )
        answer[first[images[moving.image]] + moving.unit] = moving.rank
    return answer


@dataclass(frozen=True)
class _Moves:
    """Units that leave the rank of their sample: image, number of the unit in it, rank."""

    image: Ints
    unit: Ints
    rank: Ints


def _even(costs: Ints, units: Ints, patches: Ints, home: Ints, ranks: int, patch_cap: int | None) -> _Moves:
    """Evens out one micro-batch.

    Args:
        costs, units, patches, home: [images] of one unit, how many, of one unit, rank of the sample.
    """
    work = costs * units
    mean = int(work.sum()) // ranks
    level = int(np.clip(mean - _UNITS * int(costs.max()), int(mean * _LEAST_KEPT), int(mean * _MOST_KEPT)))
    order = rising(home * (int(costs.max()) + 1) + (costs.max() - costs))  # by rank, the heaviest of each first
    until = np.cumsum(work[order])
    counts = np.bincount(home, minlength=ranks)
    until -= np.repeat(np.append(0, until)[np.cumsum(counts) - counts], counts)  # of its rank, up to and with it
    above = np.flatnonzero(until > level)
    image, kept = order[above], units.copy()
    leaving = -((level - until[above]) // np.maximum(costs[image], 1))
    kept[image] = np.maximum(units[image] - leaving, 0)
    goal = max(int(mean * _GOAL), int(costs.max()))
    found, longest = _placed(costs, units, patches, home, ranks, patch_cap, kept, goal)
    if longest <= goal:
        return found
    # giants find no room beside what has stayed: nothing stays
    again, shorter = _placed(costs, units, patches, home, ranks, patch_cap, np.zeros_like(kept), goal)
    return again if shorter < longest else found


def _placed(
    costs: Ints, units: Ints, patches: Ints, home: Ints, ranks: int, patch_cap: int | None, kept: Ints, goal: int
) -> tuple[_Moves, int]:
    """Places what is not kept at home: its moves, and the longest rank's work."""
    image = np.repeat(np.arange(len(units)), units - kept)
    image = image[falling(costs[image])]
    unit = kept[image] + _nth(image)
    loads, held = sums(home, kept * costs, ranks), sums(home, kept * patches, ranks)
    rank = spread(costs[image], loads.copy())
    limits = [] if patch_cap is None else [Limit("patches", patches[image], patch_cap)]
    cells = Cells(costs[image], limits, rank, ranks)
    cells.loads += loads
    for of in cells.held:
        of += held
    chosen = _polished(cells, goal, home[image])
    return _Moves(image, unit, chosen), int((loads + sums(chosen, costs[image], ranks)).max())


def _nth(values: Ints) -> Ints:
    """How often each value came before."""
    order = rising(values)
    starts = np.flatnonzero(np.diff(values[order], prepend=-1))
    nth = np.empty(len(values), np.int64)
    nth[order] = np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))
    return nth


def _polished(cells: Cells, level: int, home: Ints) -> Ints:
    """Rank of every unit after what the cap demands, and exchanges where ranks differ still. At home all are within the
    cap."""
    if not cells.is_feasible() and not relieve(cells, None, Effort(_EFFORT)):
        return home
    best = cells.copy()
    if cells.loads.max() > level and not _are_equal(cells.costs):
        relieve(cells, np.full(len(cells.loads), level), Effort(_EFFORT))
        if cells.loads.max() < best.loads.max() and cells.is_feasible():
            return cells.cell
    return best.cell


def _are_equal(costs: Ints) -> bool:
    return len(costs) == 0 or bool(costs.min() == costs.max())
