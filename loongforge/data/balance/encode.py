"""Which rank encodes each attention unit, in lock-step: every rank the same work in every micro-batch.

A rank keeps what its own samples bring up to nearly the mean; only what is above moves, in single units (tile, frame group,
image), to the ranks with the least. So few features travel, and no long image stays in one place.
"""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.cells import Cells, Limit
from loongforge.data.balance.exchange import Effort, relieve
from loongforge.data.balance.spread import spread
from loongforge.data.balance.types import BatchMetadata, Ints
from loongforge.data.balance.whole import falling, rising, sums

_KEPT = 0.85  # of the mean; the rest is for evening out
_GOAL = 1.002
_EFFORT = 400_000


def encoder_ranks(
    batch: BatchMetadata, unit_costs: Ints, rank: Ints, micro_batch: Ints, *, ranks: int, micro_batches: int, patch_cap: int | None
) -> Ints:
    """[sum(image_units)] rank that encodes each unit.

    Args:
        unit_costs: [m] whole number, of one unit of every image.
        rank, micro_batch: [n] where the samples are; within `patch_cap`, as the answer is.
    """
    sample = batch.sample_of_image()
    image = batch.image_of_unit()
    answer = rank[sample][image]
    of_unit = micro_batch[sample][image] if micro_batches > 1 else np.zeros(len(image), np.int64)
    for step in range(micro_batches):
        units = np.flatnonzero(of_unit == step)
        if len(units):
            patches = batch.patches_per_unit[image[units]]
            answer[units] = _even(unit_costs[image[units]], patches, answer[units], ranks, patch_cap)
    return answer


def _even(costs: Ints, patches: Ints, home: Ints, ranks: int, patch_cap: int | None) -> Ints:
    """[units] rank of every unit of one micro-batch."""
    order = rising(home * (costs.max() + 1) + (costs.max() - costs))  # by rank, the heaviest of each first
    home, costs, patches = home[order], costs[order], patches[order]
    before = np.cumsum(costs) - costs
    counts = np.bincount(home, minlength=ranks)
    before -= np.repeat(before[(np.cumsum(counts) - counts)[counts > 0]], counts[counts > 0])
    mean = int(costs.sum()) // ranks
    moves = before + costs > max(int(mean * _KEPT), 1)
    loads = sums(home[~moves], costs[~moves], ranks)
    moving = np.flatnonzero(moves)
    moving = moving[falling(costs[moving])]
    placed = home.copy()
    placed[moving] = spread(costs[moving], loads)
    placed = _polished(costs, patches, placed, home, ranks, patch_cap)
    answer = np.empty(len(order), np.int64)
    answer[order] = placed
    return answer


def _polished(costs: Ints, patches: Ints, placed: Ints, home: Ints, ranks: int, patch_cap: int | None) -> Ints:
    """Exchanges where the spread is not even yet, and what the cap demands."""
    limits = [Limit("patches", patches, patch_cap)] if patch_cap is not None else []
    cells = Cells(costs, limits, placed, ranks)
    if not cells.is_feasible() and not relieve(cells, None, Effort(_EFFORT)):
        return home
    level = max(int(costs.sum() / ranks * _GOAL), int(costs.max()))
    if cells.loads.max() > level and costs.min() * 20 < costs.sum() // ranks:
        best = cells.copy()
        relieve(cells, np.full(ranks, level), Effort(_EFFORT))
        if cells.loads.max() < best.loads.max() and cells.is_feasible():
            best = cells
        return best.cell
    return cells.cell
