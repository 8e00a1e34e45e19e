"""Global batches with all that makes layouts go wrong: uneven images, text only, none at all, packed rows."""

from __future__ import annotations

from itertools import pairwise

import torch

from loongforge.data.batch import IGNORE, Batch

IMAGE_TOKEN = 3
_FIRST_TEXT_TOKEN = 4
_IMAGES = ((1, 0, 2, 0, 0, 3, 0, 1), (0,), (0, 0, 0, 0, 4, 0, 0), (1,), (0, 0, 0, 0, 0, 0, 2, 1, 3, 1, 5, 0))
"""Images of the samples of a step, repeated; a kind of step after another."""


class SyntheticData:
    """Random samples, the same in every process.

    Args:
        samples: Of a global batch.
        vocab_size: Of the model.
        image_size: Pixels of an edge; 0 for a text-only model.
        tokens_per_image: LLM tokens of an image.
    """

    def __init__(self, *, samples: int, vocab_size: int, image_size: int, tokens_per_image: int) -> None:
        self.samples, self.vocab_size, self.image_size = samples, vocab_size, image_size
        self.tokens_per_image = tokens_per_image
        self.longest = 6 * (tokens_per_image + 4)

    def global_batch(self, step: int, multiple: int) -> Batch:
        """Samples of different lengths, padded to a multiple of `multiple` tokens."""
        generator = torch.Generator().manual_seed(step)
        pattern = _IMAGES[step % len(_IMAGES)] if self.image_size else (0,)
        counts = [pattern[i % len(pattern)] for i in range(self.samples)]
        texts = [self._sample(count, generator) for count in counts]
        length = -(-self.longest // multiple) * multiple
        tokens = torch.full((self.samples, length), _FIRST_TEXT_TOKEN)
        labels = torch.full((self.samples, length), IGNORE)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = ids
            answer = int(torch.randint(1, 5, (), generator=generator))
            labels[row, len(ids) - 1 - answer : len(ids) - 1] = ids[-answer:]
        images = torch.randn(sum(counts), 3, self.image_size, self.image_size, generator=generator)
        lengths = torch.tensor([len(ids) for ids in texts])
        return Batch(tokens, labels, images, lengths, [str(i) for i in range(self.samples)])

    def _sample(self, images: int, generator: torch.Generator) -> torch.Tensor:
        """Text, images with text between them, and at least five tokens of text at the end."""
        pieces = []
        for _ in range(images):
            pieces += [self._text(1, 5, generator), torch.full((self.tokens_per_image,), IMAGE_TOKEN)]
        used = sum(map(len, pieces))
        return torch.cat([*pieces, self._text(5, max(6, self.longest - used), generator)])[: self.longest]

    def _text(self, shortest: int, longest: int, generator: torch.Generator) -> torch.Tensor:
        size = int(torch.randint(shortest, longest, (), generator=generator))
        return torch.randint(_FIRST_TEXT_TOKEN, self.vocab_size, (size,), generator=generator)

    def micro_batches(self, whole: Batch, size: int, replica: int, dp: int) -> list[Batch]:
        """A data-parallel replica's part of a global batch, in micro-batches of `size` samples."""
        counts = (whole.tokens == IMAGE_TOKEN).sum(1) // max(self.tokens_per_image, 1)
        first_image = [0, *counts.cumsum(0).tolist()]
        parts = []
        for number in range(len(whole.ids) // size // dp):
            first = (number * dp + replica) * size
            rows = slice(first, first + size)
            images = whole.images[first_image[first] : first_image[first + size]]
            parts.append(Batch(whole.tokens[rows], whole.labels[rows], images, whole.lengths[rows], whole.ids[rows]))
        return parts


def packed(batch: Batch) -> Batch:
    """The same samples one after another in one row; what is left of the row is a document of padding."""
    length = batch.tokens.numel()
    borders = [0, *batch.lengths.cumsum(0).tolist()]
    tokens, labels = torch.full((1, length), _FIRST_TEXT_TOKEN), torch.full((1, length), IGNORE)
    for row, (begin, end) in enumerate(pairwise(borders)):
        tokens[0, begin:end] = batch.tokens[row, : end - begin]
        labels[0, begin:end] = batch.labels[row, : end - begin]
    if borders[-1] < length:
        borders.append(length)
    cu_seqlens = torch.tensor(borders, dtype=torch.int32)
    return Batch(tokens, labels, batch.images, torch.tensor([borders[-1]]), batch.ids, cu_seqlens)
