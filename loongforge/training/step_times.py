"""Phase times of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from loongforge.kernels.phases import PHASES
from loongforge.parallel.session import gather_lists, sum_over_world


def with_rest(times: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Phase times that add up to the step's seconds: what no phase has belongs to `other`."""
    rest = max(0.0, seconds - sum(times.values()))
    return {phase: times[phase] + (rest if phase == PHASES[-1] else 0.0) for phase in PHASES}


def mean_over_ranks(times: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each phase, in the mean over the ranks. Collective over the world.

    Means add up to the step, which maxima do not: the slowest rank of one phase is not that of the next.
    """
    mine = [times[phase] for phase in PHASES]
    everyone = sum_over_world(torch.tensor(mine, dtype=torch.float64))  # on the host: no device is waited for
    world = torch.distributed.get_world_size()
    return dict(zip(PHASES, (everyone / world).tolist(), strict=True))


@dataclass(frozen=True)
class PhaseShare:
    """A line of the table at the end of a run."""

    phase: str
    mean: float
    """Seconds of a step, mean over the ranks."""
    most: float
    """Of the rank that spent most."""
    rank: int
    """That rank."""


def summary(totals: Mapping[str, float], steps: int) -> list[PhaseShare]:
    """Phases that took time. Collective over the world.

    Args:
        totals: Seconds of this rank in each phase.
        steps: In so many steps.
    """
    everyone = gather_lists([[totals[phase] / max(1, steps) for phase in PHASES]])
    found = []
    for number, phase in enumerate(PHASES):
        column = [times[number] for times in everyone]
        rank = max(range(len(column)), key=column.__getitem__)
        found.append(PhaseShare(phase, sum(column) / len(column), column[rank], rank))
    return [share for share in found if share.most > 0]
