"""What is in a global batch, added up over all ranks in one collective."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loongforge.data.batch import StepData
from loongforge.model.vlm import IGNORED
from loongforge.parallel.groups import Groups
from loongforge.parallel.session import sum_over_world


@dataclass(frozen=True)
class StepCounts:
    """Of the whole global batch."""

    loss_tokens: int
    """Labelled tokens: the loss is divided by their number."""
    tokens: int
    """Tokens without padding, image tokens included."""
    padded_tokens: int
    """Tokens with padding."""
    samples: int
    images: int
    bad: int
    """Samples that were replaced."""
    stop: bool
    """Some rank has received a signal to stop."""
    balance_llm: float
    """Most tokens of a data-parallel rank over the mean."""
    balance_vision: float
    """Most images of a data-parallel rank over the mean; 1 without images."""


def count_step(data: StepData, groups: Groups, *, signalled: bool, device: torch.device) -> StepCounts:
    """Adds up a step. Collective over the world.

    Args:
        data: Of the replicas that this rank works on; one rank counts for each.
        groups: Where this rank stands.
        signalled: This rank has received a signal to stop.
        device: Of the collective.
    """
    dp, replica = groups.layout.dp, groups.reported
    sums = torch.zeros(7 + 2 * dp, dtype=torch.int64)
    if replica is not None:
        batches = data.micro_batches[replica]
        tokens, images = sum(int(b.lengths.sum()) for b in batches), sum(b.num_images for b in batches)
        labels = sum(int((b.labels != IGNORED).sum()) for b in batches)
        padded, samples = sum(b.tokens.numel() for b in batches), sum(len(b.ids) for b in batches)
        sums[:6] = torch.tensor([labels, tokens, padded, samples, images, len(data.bad[replica])])
        sums[7 + replica], sums[7 + dp + replica] = tokens, images
    sums[6] = int(signalled)
    totals = sum_over_world(sums.to(device)).tolist()
    labels, tokens, padded, samples, images, bad, signalled = totals[:7]
    return StepCounts(
        labels,
        tokens,
        padded,
        samples,
        images,
        bad,
        signalled > 0,
        _imbalance(totals[7 : 7 + dp]),
        _imbalance(totals[7 + dp :]),
    )


def _imbalance(loads: list[int]) -> float:
    return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0
