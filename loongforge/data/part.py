"""Where a rank stands, as far as its data are concerned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loongforge.parallel.images import Shapes, sizes
from loongforge.parallel.layout import Layout
from loongforge.parallel.routes import image_shares


@dataclass(frozen=True)
class Part:
    """This rank's part in a layout."""

    layout: Layout
    rank: int
    window: Callable[[int], int]
    """Micro-batches whose images are encoded together, of so many in a step."""

    @property
    def encoder(self) -> int | None:
        """Replica of the vision encoder that the rank is a part of."""
        place = self.layout.vision.place(self.rank) if self.layout.vision is not None else None
        return None if place is None else place.dp

    def replicas(self, *, anywhere: bool = False) -> list[int]:
        """LLM replicas whose samples it reads: its own, and those whose images it may encode.

        Args:
            anywhere: Images may be encoded by any replica of the encoder.
        """
        if anywhere and self.encoder is not None:
            return list(range(self.layout.dp))
        return list(self.layout.replicas(self.rank))

    def shares(self, images: Sequence[Shapes], replica: int, *, any_size: bool = False) -> list[np.ndarray]:
        """Images of each micro-batch of an LLM replica that the rank encodes, where each window's are shared evenly.

        Args:
            images: Of each micro-batch.
            replica: Of the LLM.
            any_size: What is shared evenly are patches, not images.
        """
        encoder, window = self.encoder, self.window(len(images))
        found: list[np.ndarray] = []
        if encoder is None or replica not in self.layout.served("vision", encoder):
            return [np.zeros(0, np.int64)] * len(images)
        for first in range(0, len(images), window):
            inside = images[first : first + window]
            patches = np.concatenate([sizes(part, "patches") for part in inside]) if any_size else None
            borders = np.cumsum([0, *map(len, inside)]).tolist()
            share = image_shares(self.layout, "vision", replica, borders[-1], patches).get(encoder, range(0))
            for low, high in pairwise(borders):
                found.append(np.arange(max(low, share.start), min(high, share.stop), dtype=np.int64) - low)
        return found


def of_each(held: np.ndarray, counts: Sequence[int]) -> list[tuple[int, ...] | None]:
    """For each sample of a micro-batch, which of its images are held; None: all of them."""
    wanted, before, found = set(held.tolist()), 0, []
    for count in counts:
        mine = tuple(i for i in range(count) if before + i in wanted)
        found.append(None if len(mine) == count else mine)
        before += count
    return found
