"""The plan of a global batch: a pure function of its metadata, the cost model, the ranks and the caps."""

from __future__ import annotations

import numpy as np

from loongforge.data.balance.barrier import one_barrier
from loongforge.data.balance.encode import encoder_ranks
from loongforge.data.balance.feasible import impossible
from loongforge.data.balance.lock_step import lock_step
from loongforge.data.balance.pipeline import pipeline
from loongforge.data.balance.problem import Problem, make_problem
from loongforge.data.balance.times import PIPELINE_STAGES, check_objective
from loongforge.data.balance.types import BatchMetadata, CostModel, Ints, Plan


def plan(
    batch: BatchMetadata,
    ranks: int,
    micro_batches: int,
    cost: CostModel,
    objective: str = "lock_step",
    token_cap: int | None = None,
    patch_cap: int | None = None,
    pipeline_stages: int = PIPELINE_STAGES,
) -> Plan:
    """Where every sample of a global batch goes, and with `lock_step` who encodes each of its units.

    No cell is empty unless there are fewer samples than cells. Nothing is remembered from one call to the next.

    Args:
        batch: the samples.
        ranks: data-parallel ranks.
        micro_batches: of every rank.
        cost: what samples cost; only ratios matter.
        objective: `one_barrier`, `lock_step` or `pipeline`: where ranks wait for each other, see `step_time`.
        token_cap: tokens, image tokens included, that a cell (a micro-batch of a rank) may hold; None for any number.
        patch_cap: patches that a cell may hold, both of its samples and of the units that it encodes.
        pipeline_stages: with `pipeline`, how often the largest cell of a rank counts.

    Raises:
        ValueError: a sample alone exceeds a cap; no assignment within the caps was found; anything else that cannot be.
    """
    check_objective(objective)
    problem = make_problem(batch, ranks, micro_batches, cost, token_cap, patch_cap)
    if objective == "lock_step":
        cell = lock_step(problem, batch)
    elif objective == "one_barrier":
        cell = one_barrier(problem)
    else:
        cell = pipeline(problem, pipeline_stages)
    if cell is None:
        raise impossible(problem.limits, len(batch), ranks, micro_batches)
    rank, micro_batch = _in_order_of_batch(problem, cell)
    if objective != "lock_step":
        return Plan(rank, micro_batch, None)
    encoders = encoder_ranks(
        batch, problem.unit_costs, rank, micro_batch, ranks=ranks, micro_batches=micro_batches, patch_cap=patch_cap
    )
    return Plan(rank, micro_batch, encoders)


def _in_order_of_batch(problem: Problem, cell: Ints) -> tuple[Ints, Ints]:
    of = np.empty(len(cell), np.int64)
    of[problem.order] = cell
    return of // problem.micro_batches, of % problem.micro_batches
