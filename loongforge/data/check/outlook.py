"""What the lengths of samples mean for a run: padding of its micro-batches, and what packing would reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loongforge.data.order import SampleOrder

_MOST_POSITIONS = 1 << 16


@dataclass(frozen=True)
class BatchShape:
    """How a run makes micro-batches."""

    global_batch_size: int
    micro_batch_size: int
    dp: int
    """Data-parallel replicas."""
    multiple: int
    """Rows are padded to a multiple of this."""
    steps: int
    seed: int
    shuffle: bool


def padded_share(lengths: Sequence[np.ndarray], weights: Sequence[float], shape: BatchShape) -> float | None:
    """The part of all tokens that is padding, over the first steps of the run.

    The order is that of `TrainLoader`, and so is the length that rows are padded to. Where only some samples were read,
    they stand for the others.

    Args:
        lengths: int [samples] of each source, all positive.
        weights: Of the sources.
        shape: Of the batches.

    Returns:
        Between 0 and 1; None where there is no sample.
    """
    kept = [(part, weight) for part, weight in zip(lengths, weights, strict=True) if len(part)]
    if not kept:
        return None
    order = SampleOrder([len(p) for p, _ in kept], [w for _, w in kept], seed=shape.seed, shuffle=shape.shuffle)
    steps = max(1, min(shape.steps, _MOST_POSITIONS // shape.global_batch_size))
    places = (order.at(position) for position in range(steps * shape.global_batch_size))
    tokens = np.array([kept[source][0][index] for source, index in places], np.int64)
    return 1 - float(tokens.sum()) / padded_tokens(tokens, shape)


def padded_tokens(tokens: np.ndarray, shape: BatchShape) -> int:
    """Tokens of padded micro-batches, padding included.

    Args:
        tokens: int [steps x global_batch_size], of the samples in order.
        shape: Of the batches.
    """
    rows = tokens.reshape(
        -1, shape.global_batch_size // (shape.dp * shape.micro_batch_size), shape.dp, shape.micro_batch_size
    )
    longest = rows.max(axis=(1, 3))  # a replica pads all micro-batches of a step alike
    return int((-(-longest // shape.multiple) * shape.multiple).sum()) * (rows.shape[1] * rows.shape[3])


@dataclass(frozen=True)
class Packed:
    """What packing would reach."""

    budget: int
    """Tokens of a pack at most."""
    packs: int
    fill: float
    """Part of the packs' tokens that is not padding."""
    too_long: int
    """Samples beyond the budget, which no pack can hold."""


def packing(lengths: np.ndarray, budget: int) -> Packed | None:
    """Packs all samples; None where there is none to pack.

    Args:
        lengths: int [samples], tokens of each.
        budget: Tokens of a pack at most.
    """
    from loongforge.data.balance import pack

    fitting = lengths[(lengths > 0) & (lengths <= budget)].astype(np.int64)
    if not len(fitting):
        return None
    packs = int(np.max(pack(fitting, budget))) + 1
    return Packed(budget, packs, float(fitting.sum()) / (packs * budget), int((lengths > budget).sum()))


def histogram(values: np.ndarray, most_bars: int = 12) -> list[tuple[int, int, int]]:
    """(first, last, count) of neighbouring ranges of the same width: whole, and 1, 2 or 5 times a power of ten.

    Args:
        values: int [n], not negative.
        most_bars: At most so many ranges.
    """
    if not len(values):
        return []
    low, high, width = int(values.min()), int(values.max()), 1
    while high // width - low // width + 1 > most_bars:
        width = width * 5 // 2 if str(width)[0] == "2" else width * 2
    bars = np.bincount(values // width - low // width)
    first = low // width * width
    return [(first + i * width, first + (i + 1) * width - 1, int(count)) for i, count in enumerate(bars)]
