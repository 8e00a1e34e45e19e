"""What an image becomes on its way through the model: known from its size alone, the same on every rank. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ImageShape:
    """One image, tile or video that the encoder takes as a whole."""

    pixels: int
    """Its rows in the tensor of pixels: patches of an encoder that takes any size, tiles of one that does not."""
    patches: int
    """What the encoder attends over."""
    features: int
    """Rows that the encoder gives for it."""
    tokens: int
    """LLM tokens: rows that the projector makes of its features."""
    grid: tuple[int, int, int] = (1, 1, 1)
    """Frames, rows and columns of its features; of a tiled image, of its tiles."""
    token_grid: tuple[int, int, int] | None = None
    """Frames, rows and columns of its LLM tokens, for positions with several axes; None: they are a line."""
    kept: tuple[int, int] | None = None
    """Rows and columns of a tiled image's features without the padding around it."""
    interval: float = 1.0
    """Distance of two frames of `token_grid` in temporal positions."""


Shapes = Sequence[ImageShape]


def total(shapes: Shapes, name: str) -> int:
    """Sum of one of the sizes, e.g. `features`."""
    return sum(getattr(shape, name) for shape in shapes)


def sizes(shapes: Shapes, name: str) -> np.ndarray:
    """int64 `[n]`: one of the sizes of each."""
    import numpy as np  # configs import this file, and answer at once without numpy

    return np.array([getattr(shape, name) for shape in shapes], np.int64)


def expand(chosen: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of some of a number of runs of rows that stand one after another.

    Args:
        chosen: int64 `[m]`: numbers of runs, in any order.
        lengths: int64 `[n]`: rows of each run.

    Returns:
        int64: the rows of the first chosen run, of the second ...
    """
    import numpy as np

    starts = np.cumsum(lengths) - lengths
    mine = lengths[chosen]
    within = np.arange(mine.sum()) - np.repeat(np.cumsum(mine) - mine, mine)
    return np.repeat(starts[chosen], mine) + within
