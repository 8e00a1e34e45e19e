"""Global batches with everything that makes layouts go wrong: uneven images, text only, empty ranks, packed rows."""

from __future__ import annotations

from itertools import pairwise

import torch

from loongforge.data.batch import IGNORE, Batch
from tests.support.tiny import IMAGE_TOKEN, NUM_PATCHES, VOCAB

LENGTH = 48
SAMPLES = 12
_COUNTS = (  # images of each sample, step by step
    (1, 0, 2, 0, 0, 3, 0, 1, 1, 0, 0, 2),
    (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0),
    (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (0, 0, 0, 0, 0, 0, 2, 1, 3, 1, 5, 0),
)


def uneven_batch(step: int) -> Batch:
    """12 samples of different lengths with 0 to 5 images each, padded to 48 tokens; some steps have none at all."""
    generator = torch.Generator().manual_seed(step)
    counts = _COUNTS[step % len(_COUNTS)]
    tokens = torch.full((SAMPLES, LENGTH), 4)
    labels = torch.full((SAMPLES, LENGTH), IGNORE)
    lengths = torch.zeros(SAMPLES, dtype=torch.int64)
    for row, count in enumerate(counts):
        ids = _sample(count, generator)
        lengths[row] = len(ids)
        tokens[row, : len(ids)] = ids
        answer = int(torch.randint(1, 5, (), generator=generator))
        labels[row, len(ids) - 1 - answer : len(ids) - 1] = ids[-answer:]
    images = torch.randn(sum(counts), 3, 32, 32, generator=generator)
    return Batch(tokens, labels, images, lengths, [str(i) for i in range(SAMPLES)])


def _sample(images: int, generator: torch.Generator) -> torch.Tensor:
    """Pieces of text with an image between them."""
    longest = (LENGTH - images * NUM_PATCHES) // (images + 1)
    pieces = []
    for piece in range(images + 1):
        size = int(torch.randint(1, longest, (), generator=generator)) + (5 if piece == images else 0)
        size = min(size, longest)
        pieces.append(torch.randint(4, VOCAB, (size,), generator=generator))
        if piece < images:
            pieces.append(torch.full((NUM_PATCHES,), IMAGE_TOKEN))
    pieces.append(torch.randint(4, VOCAB, (LENGTH - sum(map(len, pieces)),), generator=generator)[:5])
    return torch.cat(pieces)[:LENGTH]


def split(whole: Batch, size: int, replica: int, dp: int) -> list[Batch]:
    """A data-parallel replica's micro-batches of a global batch."""
    counts = (whole.tokens == IMAGE_TOKEN).sum(1) // NUM_PATCHES
    first_image = [0, *counts.cumsum(0).tolist()]
    parts = []
    for number in range(len(whole.ids) // size // dp):
        first = (number * dp + replica) * size
        rows = slice(first, first + size)
        images = whole.images[first_image[first] : first_image[first + size]]
        parts.append(
            Batch(whole.tokens[rows], whole.labels[rows], images, whole.lengths[rows], whole.ids[rows])
        )
    return parts


def packed(batch: Batch, multiple: int) -> Batch:
    """The same samples one after another in one row; what is left of the row is a document of padding."""
    sizes = [int(size) for size in batch.lengths]
    length = -(-batch.tokens.numel() // multiple) * multiple
    borders = [0]
    for size in sizes:
        borders.append(borders[-1] + size)
    tokens, labels = torch.full((1, length), 4), torch.full((1, length), IGNORE)
    for row, (begin, end) in enumerate(pairwise(borders)):
        tokens[0, begin:end] = batch.tokens[row, : end - begin]
        labels[0, begin:end] = batch.labels[row, : end - begin]
    if borders[-1] < length:
        borders.append(length)
    cu_seqlens = torch.tensor(borders, dtype=torch.int32)
    return Batch(tokens, labels, batch.images, torch.tensor([sum(sizes)]), batch.ids, cu_seqlens)
