"""A sample as tokens and pixels, ready for a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from loongforge.data.sample import RawSample
from loongforge.parallel.images import ImageShape

Tiles = tuple[ImageShape, ...]
"""What the encoder sees of one image."""


def num_tokens(tiles: Tiles) -> int:
    """LLM tokens of an image."""
    return sum(tile.tokens for tile in tiles)


_OBJECTS = 1000
"""Bytes of the objects around a sample's arrays; more than those of a short text."""


@dataclass(frozen=True)
class ProcessedSample:
    """A sample ready for a batch; T tokens."""

    id: str
    ids: np.ndarray
    """int32 [T], image tokens expanded."""
    learned: np.ndarray
    """bool [T]; whether a token is a target."""
    pixels: list[np.ndarray] = field(default_factory=list)
    """uint8 [H, W, 3] each: resized, not yet normalised."""
    num_cut: int = 0
    """Text tokens left out because the sample was too long (`data.too_long: truncate_text`)."""
    images: tuple[Tiles, ...] = ()
    """What each image becomes, decoded or not."""
    names: tuple[str, ...] = ()
    """Ids of the documents of a packed row; empty: the sample is one document."""
    ends: tuple[int, ...] = ()
    """Where each of them ends; its first token is no target."""

    @property
    def units(self) -> tuple[int, ...]:
        """Images that the encoder sees of each image: its tiles."""
        return tuple(map(len, self.images))

    @property
    def shapes(self) -> list[ImageShape]:
        """Of all that the encoder sees."""
        return [shape for tiles in self.images for shape in tiles]

    @property
    def num_units(self) -> int:
        """Images that the encoder sees of the sample."""
        return sum(self.units)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return _OBJECTS + self.ids.nbytes + self.learned.nbytes + sum(image.nbytes for image in self.pixels)


@dataclass(frozen=True)
class Encoded:
    """A sample's tokens, without its pixels."""

    ids: np.ndarray
    learned: np.ndarray
    num_cut: int = 0
    ends: tuple[int, ...] = ()
    images: tuple[Tiles, ...] = ()
    """See `ProcessedSample`, as for the others."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return _OBJECTS + self.ids.nbytes + self.learned.nbytes


def documents(raw: RawSample, done: ProcessedSample) -> Iterator[tuple[RawSample, ProcessedSample]]:
    """Each sample of a packed row with its tokens, or the one that a sample is. Without pixels."""
    if not raw.documents:
        yield raw, done
    first = 0
    for document, (start, end) in zip(raw.documents, pairwise((0, *done.ends)), strict=True):
        images = done.images[first : first + len(document.images)]
        first += len(images)
        ids, learned = done.ids[start:end], done.learned[start:end]
        yield document, ProcessedSample(document.id, ids, learned, num_cut=done.num_cut, images=images)
