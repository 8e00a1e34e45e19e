"""Positions of tokens on three axes (multimodal rotary positions of Qwen2-VL, arXiv 2409.12191). No torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from loongforge.parallel.images import ImageShape, Shapes


def grid_positions(is_image: np.ndarray, shapes: Shapes, borders: np.ndarray | None = None) -> np.ndarray:
    """Temporal, vertical and horizontal position of every token.

    Text counts on along all three axes. The tokens of an image share the position where it begins, plus their place in
    its grid; the text behind it goes on after its longer edge. Each document begins at 0.

    Args:
        is_image: bool `[B, S]`: whether an image row stands there.
        shapes: Of all images, in order of appearance.
        borders: int `[D + 1]`: borders of the documents of a packed row (B is 1 then); None: a row is a document.

    Returns:
        int64 `[3, B, S]`.
    """
    num_rows, length = is_image.shape
    found = np.zeros((3, num_rows, length), np.int64)
    ends = [length] if borders is None else borders[1:].tolist()
    images = iter(shapes)
    for row in range(num_rows):
        begin = 0
        for end in ends:
            found[:, row, begin:end] = _document(is_image[row, begin:end], images)
            begin = end
    return found


def _document(is_image: np.ndarray, images: Iterator[ImageShape]) -> np.ndarray:
    found = np.zeros((3, len(is_image)), np.int64)
    at, position, places = 0, 0, np.flatnonzero(is_image)
    while len(places):
        first, shape = int(places[0]), next(images)
        found[:, at:first] = position + np.arange(first - at)
        position += first - at
        at = first + shape.tokens
        found[:, first:at], step = _image(shape)
        found[:, first:at] += position
        position += step
        places = places[shape.tokens :]
    found[:, at:] = position + np.arange(len(is_image) - at)
    return found


def _image(shape: ImageShape) -> tuple[np.ndarray, int]:
    """Places in the grid `[3, tokens]`, and how far the text behind is from the image's beginning."""
    if shape.token_grid is None:
        return np.tile(np.arange(shape.tokens), (3, 1)), shape.tokens
    frames, rows, columns = shape.token_grid
    places = np.indices((frames, rows, columns)).reshape(3, -1)
    steps = np.arange(frames, dtype=np.float32) * np.float32(shape.interval)  # in float32, as transformers rounds
    places[0] = steps.astype(np.int64)[places[0]]
    return places, max(rows, columns)
