"""Orders of the patches of an image: as they come, in windows, row by row. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from loongforge.parallel.images import Shapes


@dataclass(frozen=True)
class Grids:
    """Of several images, one after another; S patches."""

    order: np.ndarray
    """int64 `[S]`: which of the patches that come in stands at each place inside the encoder."""
    places: np.ndarray
    """int64 `[2, S]`: row and column of the patch that stands there."""
    rows: np.ndarray
    """int64 `[S]`: where inside the encoder the patches stand, image by image, frame by frame and row by row."""
    frames: list[int]
    """Patches of each frame."""
    windows: list[int]
    """Patches of each window."""


def grids(shapes: Shapes, merge: int, window: int) -> Grids:
    """The orders of some images.

    Patches come in groups of `merge x merge`, groups row by row (transformers `Qwen2VLImageProcessor`). With windows,
    those of a window stand together inside the encoder.

    Args:
        shapes: Of the images; `grid` counts patches.
        merge: Edge of a group in patches.
        window: Edge of a window in groups; 0: no windows.
    """
    order, places, rows, frames, windows = [], [], [], [], []
    before = 0
    for shape in shapes:
        steps, height, width = shape.grid
        inside, where, back, lengths = _frame(height, width, merge, window)
        for _ in range(steps):
            order.append(before + inside)
            places.append(where)
            rows.append(before + back)
            before += height * width
            frames.append(height * width)
            windows += lengths
    return Grids(np.concatenate(order), np.concatenate(places, 1), np.concatenate(rows), frames, windows)


@lru_cache(maxsize=4096)
def _frame(height: int, width: int, merge: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """(order, places, rows, lengths of windows) of one frame."""
    down, across = height // merge, width // merge
    groups = np.arange(down * across).reshape(down, across)
    edge = window or max(down, across)
    parts = [groups[i : i + edge, j : j + edge].ravel() for i in range(0, down, edge) for j in range(0, across, edge)]
    group_order = np.concatenate(parts)
    order = (group_order[:, None] * merge**2 + np.arange(merge**2)).ravel()
    coming = np.arange(height * width).reshape(down, merge, across, merge).transpose(0, 2, 1, 3).ravel()
    standing = coming[order]  # number, counted row by row, of the patch at each place
    return order, np.stack(np.divmod(standing, width)), np.argsort(standing), [len(part) * merge**2 for part in parts]
