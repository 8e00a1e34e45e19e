"""One processed sample, taken apart for the eye: what the model reads, and what it learns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loongforge.data.processing import ProcessedSample, SampleProcessor


@dataclass(frozen=True)
class Piece:
    """A token, or all tokens of an image."""

    text: str
    ids: list[int]
    learned: bool
    is_image: bool


@dataclass(frozen=True)
class Preview:
    """A processed sample, taken apart."""

    id: str
    pieces: list[Piece]
    """In order; together they are all tokens."""
    image_spans: list[tuple[int, int]]
    """First and end position of every image's tokens."""
    num_tokens: int
    num_learned: int
    learned_text: str
    """What the label tokens say."""


def preview(sample: ProcessedSample, processor: SampleProcessor) -> Preview:
    """Takes a processed sample apart."""
    spans = _image_spans(sample.ids, processor)
    decode = processor.decode
    ends = dict(spans)
    pieces, position = [], 0
    while position < len(sample.ids):
        end = ends.get(position, position + 1)
        ids = sample.ids[position:end].tolist()
        is_image = position in ends
        text = processor.image_token if is_image else decode(ids)
        pieces.append(Piece(text, ids, bool(sample.learned[position]), is_image))
        position = end
    learned = sample.ids[sample.learned]
    return Preview(sample.id, pieces, spans, len(sample.ids), len(learned), decode(learned.tolist()))


def _image_spans(ids: np.ndarray, processor: SampleProcessor) -> list[tuple[int, int]]:
    """Neighbouring images are told apart by their fixed length."""
    positions = np.flatnonzero(ids == processor.image_token_id)
    length = processor.num_image_tokens
    return [(int(start), int(start) + length) for start in positions[:: max(length, 1)]]
