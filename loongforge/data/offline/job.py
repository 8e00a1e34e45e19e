"""What is to be packed, and how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loongforge.config.schema import DataConfig
from loongforge.data.check.outlook import BatchShape
from loongforge.data.meta_index import fingerprint
from loongforge.data.offline.budget import Budget
from loongforge.data.order import SampleOrder
from loongforge.data.processing import SampleProcessor
from loongforge.data.sources import Source, open_sources
from loongforge.data.sources.files import stamp

_VERSION = 1
_POLICY = ("bad_sample", "too_long", "max_bad", "max_bad_ratio")


@dataclass(frozen=True)
class Job:
    """Everything that decides the packs."""

    sources: Sequence[Source]
    order: SampleOrder
    processor: SampleProcessor
    data: DataConfig
    """Says what becomes of bad samples, and where indexes are."""
    budget: Budget
    positions: int
    """Samples of the order that are packed."""
    window: int
    """Samples among which rows are filled at a time: what is in memory, and what an interrupted run repeats."""
    shard_rows: int
    """Rows of a shard."""
    shape: BatchShape | None = None
    """Padded batches to compare with."""

    @property
    def windows(self) -> Iterator[range]:
        """Positions of each window."""
        for first in range(0, self.positions, self.window):
            yield range(first, min(first + self.window, self.positions))

    def plan(self) -> dict[str, Any]:
        """Plain values that differ where packs would."""
        files = [(part.path, stamp(part.path), part.stop) for source in self.sources for part in source.parts]
        order = {"seed": self.order.seed, "shuffle": self.order.shuffle, "shares": self.order.shares}
        return {
            "version": _VERSION,
            "budget": asdict(self.budget),
            "positions": self.positions,
            "window": self.window,
            "rows of a shard": self.shard_rows,
            "order": order,
            "bad samples": {name: getattr(self.data, name) for name in _POLICY},
            "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            **fingerprint(self.processor),
        }


def make_job(
    data: DataConfig,
    processor: SampleProcessor,
    budget: Budget,
    *,
    seed: int,
    samples: int | None,
    window: int,
    shard_rows: int,
    shape: BatchShape | None = None,
) -> Job:
    """Opens the training data of a recipe.

    Args:
        data: `data.train` and its policy.
        processor: the run's.
        budget: of a row.
        seed: `trainer.seed`, which decides the order.
        samples: so many of the run's order; None: until every sample has come, or each source as often as its `repeat`.
        window: see `Job`.
        shard_rows: see `Job`.
        shape: see `Job`.

    Raises:
        UserError: data that cannot be opened.
    """
    opened = open_sources(data.train, "data.train", data.image_dir, data.index_dir)
    sources, weights = [source for source, _ in opened], [weight for _, weight in opened]
    order = SampleOrder([len(source) for source in sources], weights, seed=seed, shuffle=data.shuffle)
    repeated = not isinstance(data.train, str) and any(source.repeat is not None for source in data.train)
    positions = samples or (round(sum(weights)) if repeated else order.once())
    return Job(sources, order, processor, data, budget, positions, window, shard_rows, shape)
