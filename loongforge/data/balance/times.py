"""How long a step takes under a plan, and the time that no plan can be below.

Simulated with a cost model: no communication, no kernels. D ranks, K micro-batches; a cell is one (rank, micro-batch).

- `one_barrier` (DDP, ZeRO-1/2, distributed optimizer): the slowest rank's sum of everything it does.
- `lock_step` (FSDP, expert parallelism, any encoder dispatch): ranks wait for each other after the encoder and after
  the language model of each micro-batch; the sum over micro-batches of the slowest encoder and slowest language model.
- `pipeline` (1F1B over P stages): a rank's cells, and P - 1 times its largest one more, over P; of the slowest rank.
"""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.types import OBJECTIVES, BatchMetadata, CostModel, Floats, Ints, Plan

PIPELINE_STAGES = 4


def step_time(
    plan: Plan,
    batch: BatchMetadata,
    *,
    ranks: int,
    micro_batches: int,
    cost: CostModel,
    objective: str,
    pipeline_stages: int = PIPELINE_STAGES,
) -> float:
    """Milliseconds of a step under `plan`."""
    check_objective(objective)
    vision, llm = cell_times(plan, batch, ranks=ranks, micro_batches=micro_batches, cost=cost)
    if objective == "lock_step":
        return float(vision.max(axis=0).sum() + llm.max(axis=0).sum())
    cells = vision + llm
    if objective == "one_barrier":
        return float(cells.sum(axis=1).max())
    return float((cells.sum(axis=1) + (pipeline_stages - 1) * cells.max(axis=1)).max()) / pipeline_stages


def cell_times(
    plan: Plan, batch: BatchMetadata, *, ranks: int, micro_batches: int, cost: CostModel
) -> tuple[Floats, Floats]:
    """Milliseconds of encoder and language model: two arrays [ranks, micro_batches]."""
    image = batch.image_of_unit()
    sample = batch.sample_of_image()[image]
    encoder_rank = plan.rank[sample] if plan.encoder_rank is None else plan.encoder_rank
    units = cost.units(batch.patches_per_unit)[image]
    shape = (ranks, micro_batches)
    vision = _sums(encoder_rank * micro_batches + plan.micro_batch[sample], units, shape)
    llm = _sums(plan.rank * micro_batches + plan.micro_batch, cost.documents(batch.tokens()), shape)
    return vision, llm


def _sums(cell: Ints, values: Floats, shape: tuple[int, int]) -> Floats:
    return np.bincount(cell, weights=values, minlength=shape[0] * shape[1]).astype(np.float64).reshape(shape)


def lower_bound(
    batch: BatchMetadata,
    *,
    ranks: int,
    micro_batches: int,
    cost: CostModel,
    objective: str,
    units_free: bool = False,
    pipeline_stages: int = PIPELINE_STAGES,
) -> float:
    """Milliseconds that no plan is below, whatever its caps.

    Args:
        units_free: with `one_barrier`, a unit may be encoded on another rank than its sample's: a lower bound then.
    """
    check_objective(objective)
    unit_cost, llm = cost.units(batch.patches_per_unit), cost.documents(batch.tokens())
    vision_total, llm_total = float((unit_cost * batch.image_units).sum()), float(llm.sum())
    heaviest_unit = float(unit_cost[batch.image_units > 0].max(initial=0))
    if objective == "lock_step":
        return max(vision_total / ranks, heaviest_unit) + max(llm_total / ranks, float(llm.max(initial=0)))
    mean = (vision_total + llm_total) / ranks
    if objective == "one_barrier" and units_free:
        return max(mean, float(llm.max(initial=0)), heaviest_unit)
    samples = llm + np.bincount(batch.sample_of_image(), weights=unit_cost * batch.image_units, minlength=len(batch))
    if objective == "one_barrier":
        return max(mean, _pigeonhole(samples, ranks))
    filled_and_drained = mean * (1 + (pipeline_stages - 1) / micro_batches) / pipeline_stages
    return max(filled_and_drained, float(samples.max(initial=0)))


def _pigeonhole(costs: Floats, ranks: int) -> float:
    """Of the j * ranks + 1 heaviest samples, some rank has j + 1: at least the lightest j + 1 of them."""
    falling = np.sort(costs)[::-1]
    bounds = [
        falling[j * ranks - j : j * ranks + 1].sum()
        for j in range((len(falling) - 1) // ranks + 1 if len(falling) else 0)
    ]
    return float(max(bounds, default=0.0))


def check_objective(objective: str) -> None:
    """Raises ValueError where there is no such objective."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r} is none of {', '.join(OBJECTIVES)}")
