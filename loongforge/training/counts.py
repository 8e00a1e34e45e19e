"""What is in a global batch, added up over all ranks in one collective."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loongforge.components.products import COUNTS
from loongforge.config.schema import ModelConfig
from loongforge.data.batch import StepData
from loongforge.model.vlm import IGNORED
from loongforge.model.work import count_work
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
    same_data: bool
    """Seen from this rank, all have arranged the global batch alike."""
    stop: bool
    """Some rank has received a signal to stop."""
    balance_llm: float
    """Most tokens of an LLM replica over the mean."""
    balance_vision: float
    """Most images of an encoder replica over the mean, patches where images differ in size; 1 without images."""
    work: dict[str, int]
    """What FLOPs are counted from; see `loongforge.components.products.COUNTS`."""


def count_step(
    data: StepData,
    groups: Groups,
    model: ModelConfig,
    *,
    image_token: int | None,
    signalled: bool,
    device: torch.device,
) -> StepCounts:
    """Adds up a step. Collective over the world.

    Args:
        data: Of the replicas that this rank works on; one rank counts for each.
        groups: Where this rank stands.
        model: What works on it.
        image_token: Id of the image placeholder; None for a text-only model.
        signalled: This rank has received a signal to stop.
        device: Of the collective.
    """
    dp, replica = groups.layout.dp, groups.reported
    sums, tokens, images = torch.zeros(8, dtype=torch.int64), torch.zeros(dp, dtype=torch.int64), _images(data, groups)
    work = torch.zeros(len(COUNTS), dtype=torch.int64)
    if replica is not None:
        batches = data.micro_batches[replica]
        tokens[replica] = sum(int(b.lengths.sum()) for b in batches)
        labels = sum(int((b.labels != IGNORED).sum()) for b in batches)
        padded, samples = sum(b.tokens.numel() for b in batches), sum(len(b.ids) for b in batches)
        everything = sum(b.num_images for b in batches)
        bad = len(data.bad[replica])
        work = torch.tensor(count_work(batches, [b.lengths for b in batches], model, image_token))
        sums[:6] = torch.tensor([labels, int(tokens[replica]), padded, samples, everything, bad])
    sums[6:] = torch.tensor([int(signalled), data.fingerprint])
    totals = sum_over_world(torch.cat([sums, tokens, work, images]).to(device)).tolist()
    loads, worked = totals[8 : 8 + dp], totals[8 + dp : 8 + dp + len(COUNTS)]
    labels, all_tokens, padded, samples, everything, bad, signalled, fingerprints = totals[:8]
    return StepCounts(
        loss_tokens=labels,
        tokens=all_tokens,
        padded_tokens=padded,
        samples=samples,
        images=everything,
        bad=bad,
        same_data=fingerprints == data.fingerprint * groups.layout.world_size,
        stop=signalled > 0,
        balance_llm=_imbalance(loads),
        balance_vision=_imbalance(totals[8 + dp + len(COUNTS) :]),
        work=dict(zip(COUNTS, worked, strict=True)),
    )


def _images(data: StepData, groups: Groups) -> torch.Tensor:
    """Images of each encoder replica; this rank's part of the sums."""
    if groups.layout.vision is None:
        return torch.zeros(1, dtype=torch.int64)
    found, place = torch.zeros(groups.layout.vision.dp, dtype=torch.int64), groups.layout.vision.place(groups.rank)
    if place is not None and place.tp == 0:
        found[place.dp] = sum(batch.held_patches for part in data.micro_batches.values() for batch in part)
    return found


def _imbalance(loads: list[int]) -> float:
    return max(loads) * len(loads) / sum(loads) if sum(loads) else 1.0
