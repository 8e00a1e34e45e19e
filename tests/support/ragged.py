"""Batches of any shape for the tiny model: a sample is the lengths of its texts, with an image between two of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loongforge.data.batch import IGNORE, Batch
from tests.support.tiny import IMAGE_TOKEN, NUM_PATCHES, VOCAB

Texts = tuple[int, ...]
"""Tokens before, between and after the images of a sample: one more than it has images. The last has two at least."""


def num_tokens(sample: Texts) -> int:
    """Length of a sample."""
    return sum(sample) + NUM_PATCHES * (len(sample) - 1)


def image_positions(sample: Texts) -> list[int]:
    """Where the image tokens of a sample stand."""
    found: list[int] = []
    at = 0
    for text in sample[:-1]:
        at += text
        found += range(at, at + NUM_PATCHES)
        at += NUM_PATCHES
    return found


def ragged_batch(samples: Sequence[Texts], seed: int, length: int) -> Batch:
    """The samples in rows of `length` tokens, with labels at the end; pictures do not depend on the texts."""
    texts, pixels = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    tokens = torch.full((len(samples), length), 4)
    labels = torch.full((len(samples), length), IGNORE)
    for row, sample in enumerate(samples):
        size = num_tokens(sample)
        tokens[row, :size] = torch.randint(4, VOCAB, (size,), generator=texts)
        learned = slice(size - 1 - min(3, sample[-1] - 1), size - 1)
        labels[row, learned] = tokens[row, learned.start + 1 : size]
        tokens[row, image_positions(sample)] = IMAGE_TOKEN
    images = torch.randn(sum(len(sample) - 1 for sample in samples), 3, 32, 32, generator=pixels)
    lengths = torch.tensor([num_tokens(sample) for sample in samples])
    return Batch(tokens, labels, images, lengths, [str(row) for row in range(len(samples))])


def part(batch: Batch, rows: Sequence[int], length: int | None = None) -> Batch:
    """Some rows of a batch with their images, cut to `length` tokens."""
    counts = (batch.tokens == IMAGE_TOKEN).sum(1) // NUM_PATCHES
    first = [0, *counts.cumsum(0).tolist()]
    images = torch.cat([batch.images[:0], *(batch.images[first[row] : first[row + 1]] for row in rows)])
    here = list(rows)
    ids = [batch.ids[row] for row in here]
    return Batch(batch.tokens[here, :length], batch.labels[here, :length], images, batch.lengths[here], ids)


def rows_of(replica: int, dp: int, size: int, samples: int) -> list[list[int]]:
    """Samples of each micro-batch of a replica: micro-batches of `size` neighbours, dealt to the replicas in turn."""
    return [list(range(first, first + size)) for first in range(replica * size, samples, size * dp)]
