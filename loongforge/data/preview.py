"""One processed sample, taken apart for the eye: what the model reads, and what it learns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from loongforge.data.processed import ProcessedSample, num_tokens
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample

_MOST_BYTES = 4  # of a character in UTF-8


@dataclass(frozen=True)
class Piece:
    """A token, the tokens of one character, or all tokens of an image."""

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
    roles: dict[int, str] = field(default_factory=dict)
    """{number of a piece: role of the message that begins with it}; none for raw text, and where it is not known. In a
    packed row, the first piece of each sample has its id besides."""
    pixels: list[np.ndarray] = field(default_factory=list)
    """uint8 [H, W, 3] each, as the encoder sees them but for the scale; the tiles of all images in order."""
    units: tuple[int, ...] = ()
    """Tiles of each image; 1 where images are not cut."""


def preview(sample: ProcessedSample, processor: SampleProcessor, raw: RawSample | None = None) -> Preview:
    """Takes a processed sample apart.

    Args:
        sample: From `processor`.
        processor: Of the run.
        raw: What the sample was made from, to tell who says what.
    """
    spans = _image_spans(sample, processor)
    pieces = _pieces(sample, dict(spans), processor)
    learned = sample.ids[sample.learned]
    return Preview(
        id=sample.id,
        pieces=pieces,
        image_spans=spans,
        num_tokens=len(sample.ids),
        num_learned=len(learned),
        learned_text=processor.decode(learned.tolist()),
        roles=_roles(sample, pieces, processor, raw) if raw is not None else {},
        pixels=[tile for pixels in sample.pixels for tile in (pixels if pixels.ndim == 4 else [pixels])],
        units=_tiles(sample),
    )


def _tiles(sample: ProcessedSample) -> tuple[int, ...]:
    """Of each image; where the encoder takes an image's tiles together, as many as there are pictures."""
    if not any(pixels.ndim == 4 for pixels in sample.pixels):
        return sample.units
    return tuple(len(pixels) for pixels in sample.pixels)


def _pieces(sample: ProcessedSample, images: dict[int, int], processor: SampleProcessor) -> list[Piece]:
    """`images`: {first: end} of the images' tokens."""
    pieces: list[Piece] = []
    position = 0
    while position < len(sample.ids):
        end = images.get(position)
        if end is not None:
            piece = Piece(processor.image_token, sample.ids[position:end].tolist(), False, True)
        else:
            piece = _text_piece(sample, position, images, pieces, processor)
        pieces.append(piece)
        position += len(piece.ids)
    return pieces


def _text_piece(
    sample: ProcessedSample, first: int, images: dict[int, int], before: list[Piece], processor: SampleProcessor
) -> Piece:
    """A token; or as many as make up one character, where it takes several."""
    learned = bool(sample.learned[first])
    ids = sample.ids[first : first + 1].tolist()
    text = _text_behind(before, ids, processor)
    for end in range(first + 2, min(first + _MOST_BYTES, len(sample.ids)) + 1):
        if not text.endswith("\ufffd") or end - 1 in images or sample.learned[end - 1] != learned:
            break
        longer = sample.ids[first:end].tolist()
        whole = _text_behind(before, longer, processor)
        if "\ufffd" not in whole:
            return Piece(whole, longer, learned, False)
    return Piece(text, ids, learned, False)


def _text_behind(before: list[Piece], ids: list[int], processor: SampleProcessor) -> str:
    """Decoded behind the piece before it, since many tokenizers leave out a space at the beginning of a text."""
    if before and not before[-1].is_image:
        alone, both = processor.decode(before[-1].ids), processor.decode(before[-1].ids + ids)
        if both.startswith(alone):
            return both[len(alone) :]
    return processor.decode(ids)


def _roles(sample: ProcessedSample, pieces: list[Piece], processor: SampleProcessor, raw: RawSample) -> dict[int, str]:
    if not raw.documents:
        return _roles_in(pieces, processor, raw) if not sample.num_cut else {}
    ends = np.cumsum([len(piece.ids) for piece in pieces])
    found: dict[int, str] = {}
    first = 0
    for document, end in zip(raw.documents, np.searchsorted(ends, sample.ends).tolist(), strict=True):
        inside = _roles_in(pieces[first : end + 1], processor, document) if not sample.num_cut else {}
        found |= {first + number: role for number, role in inside.items()}
        found[first] = f"sample {document.id}" + (f", {found[first]}" if first in found else "")
        first = end + 1
    return found


def _roles_in(pieces: list[Piece], processor: SampleProcessor, raw: RawSample) -> dict[int, str]:
    """Of one sample."""
    if raw.text is not None:
        return {}
    starts = processor.message_starts(raw.messages)
    sizes = [1 if piece.is_image else len(piece.ids) for piece in pieces]  # images are not expanded in `starts`
    begins = np.cumsum([0, *sizes[:-1]])
    numbers = np.searchsorted(begins, starts).tolist()
    return {number: str(message["role"]) for number, message in zip(numbers, raw.messages, strict=False)}


def _image_spans(sample: ProcessedSample, processor: SampleProcessor) -> list[tuple[int, int]]:
    """Neighbouring images are told apart by their lengths."""
    positions = np.flatnonzero(sample.ids == processor.image_token_id)
    lengths = [num_tokens(tiles) for tiles in sample.images]
    firsts = np.cumsum([0, *lengths[:-1]])
    return (
        [(int(start), int(start) + length) for start, length in zip(positions[firsts], lengths, strict=True)]
        if lengths
        else []
    )
