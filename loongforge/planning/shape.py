"""Sizes of a layout's batch: micro-batches, windows, images of a rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loongforge.model.checks import micro_batch_size, window_size
from loongforge.parallel.layout import Layout
from loongforge.planning.workload import Costs


@dataclass(frozen=True)
class Shape:
    """How a layout divides a step."""

    micro_batch: int
    """Samples."""
    micro_batches: int
    """Of each LLM replica."""
    window: int
    """Micro-batches whose images are encoded together."""
    windows: int
    images: float
    """Images of an LLM replica in a window."""

    @classmethod
    def of(cls, costs: Costs, layout: Layout) -> Shape:
        """The engine's choices for this layout."""
        config = costs.config
        micro = micro_batch_size(config, layout)
        number = max(1, config.trainer.global_batch_size // (micro * layout.dp))
        window = window_size(layout, config.trainer.encode_window, number, micro)
        return cls(micro, number, window, -(-number // window), window * micro * costs.workload.images)

    def images_on(self, layout: Layout, name: str) -> float:
        """Images of a window that the busiest replica of an encoder component takes."""
        grid = layout.grid(name)
        assert grid is not None
        if grid.dp <= layout.dp:
            return self.images * -(-layout.dp // grid.dp)
        share = self.images * layout.dp / grid.dp
        return float(math.ceil(share)) if self.images >= 1 else share
