"""Samples of one image or several between their text, and rows of them: padded, or one document after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from loongforge.data.balance import pack
from loongforge.data.batch import IGNORE, Batch

IMAGE_TOKEN = 3
_FIRST_TEXT = 4
Row = tuple[torch.Tensor, torch.Tensor, list[int]]


@dataclass(frozen=True)
class Sample:
    """The second half of a sample's text is the answer, which is learned."""

    tokens: np.ndarray
    """int64 `[T]`."""
    labels: np.ndarray
    """int64 `[T]`: what each position has to predict."""
    images: np.ndarray
    """float32 `[N, 3, size, size]`."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def label_tokens(self) -> int:
        """Positions that are learned."""
        return int((self.labels != IGNORE).sum())


def draw_sample(
    draw: np.random.Generator, *, text: int, images: int, image_tokens: int, image_size: int, vocab_size: int
) -> Sample:
    """A sample of random tokens, its images between the pieces of the question.

    Args:
        draw: Decides everything.
        text: Tokens of text, at least 4.
        images: Their number.
        image_tokens: Of one image.
        image_size: Its edge in pixels.
        vocab_size: Ids are below it.
    """
    answer = max(2, text // 2)
    words = draw.integers(_FIRST_TEXT, vocab_size, text)
    places = np.sort(draw.integers(1, text - answer, images, endpoint=True))
    tokens = np.insert(words, np.repeat(places, image_tokens), IMAGE_TOKEN)
    labels = np.full(len(tokens), IGNORE)
    labels[-1 - answer : -1] = tokens[-answer:]
    return Sample(tokens, labels, draw.standard_normal((images, 3, image_size, image_size), np.float32))


def rows_of(samples: Sequence[Sample], length: int) -> list[list[Sample]]:
    """As few rows of at most `length` as the packer finds."""
    bins = pack(np.array([len(sample) for sample in samples]), length)
    return [[s for s, b in zip(samples, bins, strict=True) if b == number] for number in range(bins.max() + 1)]


def joined(samples: Sequence[Sample], length: int) -> Row:
    """Samples one after another in a row of `length`: tokens, labels, borders."""
    tokens, labels, borders = np.zeros(length, np.int64), np.full(length, IGNORE, np.int64), [0]
    for sample in samples:
        place = slice(borders[-1], borders[-1] + len(sample))
        tokens[place], labels[place] = sample.tokens, sample.labels
        borders.append(place.stop)
    return torch.from_numpy(tokens), torch.from_numpy(labels), borders


def images_of(samples: Sequence[Sample]) -> torch.Tensor:
    """`[N, 3, height, width]`"""
    return torch.from_numpy(np.concatenate([sample.images for sample in samples]))


def packed_batch(samples: Sequence[Sample]) -> Batch:
    """All samples as documents of one row of ours."""
    total = sum(len(sample) for sample in samples)
    tokens, labels, borders = joined(samples, total)
    ends = torch.tensor(borders, dtype=torch.int32)
    return Batch(tokens[None], labels[None], images_of(samples), torch.tensor([total]), [""] * len(samples), ends)


def padded_inputs(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Rows as long as the longest, as transformers' models take them."""
    length = max(len(sample) for sample in samples)
    mask = torch.tensor([[1] * len(sample) + [0] * (length - len(sample)) for sample in samples])
    return {**_inputs([joined([sample], length) for sample in samples], samples), "attention_mask": mask}


def packed_inputs(rows: Sequence[Sequence[Sample]], length: int) -> dict[str, torch.Tensor]:
    """Rows of documents, told by positions that restart, as transformers' models take them."""
    made = [joined(samples, length) for samples in rows]
    positions = [np.concatenate([np.arange(size) for size in np.diff([*borders, length])]) for _, _, borders in made]
    inside = [sample for samples in rows for sample in samples]
    return {**_inputs(made, inside), "position_ids": torch.from_numpy(np.stack(positions))}


def _inputs(rows: Sequence[Row], samples: Sequence[Sample]) -> dict[str, Any]:
    """A label is that of its own position; the model moves it to the one before."""
    return {
        "input_ids": torch.stack([row[0] for row in rows]),
        "labels": torch.stack([row[1] for row in rows]).roll(1, 1),
        "pixel_values": images_of(samples),
    }
