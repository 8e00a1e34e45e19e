"""Global batches with all that makes layouts go wrong: uneven images, text only, none at all, packed rows."""

from __future__ import annotations

from itertools import cycle, pairwise

import torch

from loongforge.data.batch import IGNORE, Batch
from loongforge.parallel.images import ImageShape, Shapes, total

IMAGE_TOKEN = 3
_FIRST_TEXT_TOKEN = 4
_IMAGES = ((1, 0, 2, 0, 0, 3, 0, 1), (0,), (0, 0, 0, 0, 4, 0, 0), (1,), (0, 0, 0, 0, 0, 0, 2, 1, 3, 1, 5, 0))
"""Images of the samples of a step, repeated; a kind of step after another."""


class SyntheticData:
    """Random samples, the same in every process.

    Args:
        samples: Of a global batch.
        vocab_size: Of the model.
        kinds: What images become, one kind after another; none for a text-only model.
        pixel_row: Shape of a row of the tensor of pixels: `(3, height, width)`, or `(numbers of a patch,)`.
        any_size: Whether images differ.
    """

    def __init__(
        self,
        *,
        samples: int,
        vocab_size: int,
        kinds: Shapes = (),
        pixel_row: tuple[int, ...] = (),
        any_size: bool = False,
    ) -> None:
        self.samples, self.vocab_size = samples, vocab_size
        self.kinds, self.pixel_row, self.any_size = kinds, pixel_row, any_size
        self.longest = 6 * (max((kind.tokens for kind in kinds), default=0) + 4)

    def global_batch(self, step: int, multiple: int) -> Batch:
        """Samples of different lengths, padded to a multiple of `multiple` tokens."""
        generator = torch.Generator().manual_seed(step)
        pattern = _IMAGES[step % len(_IMAGES)] if self.kinds else (0,)
        kinds = cycle(self.kinds)
        images = [[next(kinds) for _ in range(pattern[i % len(pattern)])] for i in range(self.samples)]
        texts = [self._sample(shapes, generator) for shapes in images]
        length = -(-self.longest // multiple) * multiple
        tokens = torch.full((self.samples, length), _FIRST_TEXT_TOKEN)
        labels = torch.full((self.samples, length), IGNORE)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = ids
            answer = int(torch.randint(1, 5, (), generator=generator))
            labels[row, len(ids) - 1 - answer : len(ids) - 1] = ids[-answer:]
        shapes = [shape for part in images for shape in part]
        pixels = torch.randn(total(shapes, "pixels"), *self.pixel_row, generator=generator)
        lengths = torch.tensor([len(ids) for ids in texts])
        names = [str(i) for i in range(self.samples)]
        return Batch(tokens, labels, pixels, lengths, names, shapes=shapes if self.any_size else None)

    def _sample(self, images: Shapes, generator: torch.Generator) -> torch.Tensor:
        """Text, images with text between them, and at least five tokens of text at the end."""
        pieces = []
        for image in images:
            pieces += [self._text(1, 5, generator), torch.full((image.tokens,), IMAGE_TOKEN)]
        used = sum(map(len, pieces))
        return torch.cat([*pieces, self._text(5, max(6, self.longest - used), generator)])[: self.longest]

    def _text(self, shortest: int, longest: int, generator: torch.Generator) -> torch.Tensor:
        size = int(torch.randint(shortest, longest, (), generator=generator))
        return torch.randint(_FIRST_TEXT_TOKEN, self.vocab_size, (size,), generator=generator)

    def micro_batches(self, whole: Batch, size: int, replica: int, dp: int) -> list[Batch]:
        """A data-parallel replica's part of a global batch, in micro-batches of `size` samples."""
        images = self._images(whole)
        parts, before = [], [total([s for row in images[:i] for s in row], "pixels") for i in range(len(images) + 1)]
        for number in range(len(whole.ids) // size // dp):
            first = (number * dp + replica) * size
            rows = slice(first, first + size)
            pixels = whole.images[before[first] : before[first + size]]
            shapes = [shape for row in images[rows] for shape in row] if self.any_size else None
            texts = whole.tokens[rows], whole.labels[rows]
            parts.append(Batch(*texts, pixels, whole.lengths[rows], whole.ids[rows], shapes=shapes))
        return parts

    def _images(self, whole: Batch) -> list[list[ImageShape]]:
        """Of each sample."""
        shapes = iter(whole.shapes or cycle(self.kinds))
        found: list[list[ImageShape]] = []
        for tokens in (whole.tokens == IMAGE_TOKEN).sum(1).tolist():
            found.append([])
            while total(found[-1], "tokens") < tokens:
                found[-1].append(next(shapes))
        return found


def packed(batch: Batch) -> Batch:
    """The same samples one after another in one row; what is left of the row is a document of padding."""
    length = batch.tokens.numel()
    borders = [0, *batch.lengths.cumsum(0).tolist()]
    tokens, labels = torch.full((1, length), _FIRST_TEXT_TOKEN), torch.full((1, length), IGNORE)
    for row, (begin, end) in enumerate(pairwise(borders)):
        tokens[0, begin:end] = batch.tokens[row, : end - begin]
        labels[0, begin:end] = batch.labels[row, : end - begin]
    lengths = torch.tensor([borders[-1]])
    if borders[-1] < length:
        borders.append(length)
    cu_seqlens = torch.tensor(borders, dtype=torch.int32)
    return Batch(tokens, labels, batch.images, lengths, batch.ids, cu_seqlens, shapes=batch.shapes)
