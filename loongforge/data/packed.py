"""Packed steps: the samples of a global batch as documents of full rows, divided over ranks by plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.arrange import Arrangement, Load, Rules, arrange
from loongforge.data.balance import CostModel
from loongforge.data.batch import IGNORE, BadSample, Batch, StepData, shapes_of, targets
from loongforge.data.fetch import SampleFetcher
from loongforge.data.metadata import MetadataTable
from loongforge.data.part import Part, of_each
from loongforge.data.processed import ProcessedSample
from loongforge.data.replacement import GoodSamples
from loongforge.parallel.routes import ImagePlan


@dataclass(frozen=True)
class Slot:
    """A sample of a global batch."""

    source: int
    index: int
    load: Load


@dataclass(frozen=True)
class PackedSteps:
    """Makes this rank's part of any step; every rank arranges the whole global batch alike, and reads its own part."""

    good: GoodSamples
    fetcher: SampleFetcher
    table: MetadataTable
    """Of the same sources. Where bad samples are skipped it decodes images, so that all ranks replace the same."""
    rules: Rules
    part: Part
    global_batch_size: int
    costs: list[tuple[int, CostModel]] = field(default_factory=list)
    """Which costs hold from which step on, ascending; before the first those of `rules`."""

    def make(self, step: int) -> StepData:
        """Micro-batches of a step.

        Raises:
            UserError: a bad sample under the policy `fail`.
        """
        bad: list[BadSample] = []
        first = step * self.global_batch_size
        positions = range(first, first + self.global_batch_size)
        slots = [self.good.at(position, step, bad, self._slot) for position in positions]
        try:
            arrangement = arrange([slot.load for slot in slots], self._rules(step))
        except ValueError as error:
            raise UserError(
                f"the samples of step {step + 1} do not fit into micro-batches: {error} (sample i is at position "
                f"{first} + i of the order); raise trainer.micro_batch_tokens or balance.patch_cap"
            ) from error
        batches = {
            replica: self._replica(slots, arrangement, replica)
            for replica in self.part.replicas(anywhere=arrangement.encoders is not None)
        }
        # every rank knows all that was left out; the first replica tells
        return StepData(batches, {replica: bad if replica == 0 else [] for replica in batches}, arrangement.fingerprint)

    def _rules(self, step: int) -> Rules:
        known = [cost for first, cost in self.costs if first <= step]
        return replace(self.rules, cost=known[-1]) if known else self.rules

    def _slot(self, source: int, index: int) -> Slot:
        meta = self.table.get(source, index)
        if meta.problem is not None:
            self.fetcher.fetch(source, index)  # says which sample it is
            raise UserError(f"{self.fetcher.sources[source].locate(index)} has changed since it was indexed")
        images = self.fetcher.processor.images(meta.image_sizes)
        return Slot(source, index, Load(meta.text_tokens, tuple(images)))

    def _replica(self, slots: Sequence[Slot], arrangement: Arrangement, replica: int) -> list[Batch]:
        cells = arrangement.cells[replica]
        plans = self._image_plans(slots, arrangement, replica)
        lengths = [sum(slots[number].load.tokens for number in cell) for cell in cells]
        multiple = self.part.layout.sequence_multiple
        if self.part.layout.llm.pp > 1:  # pipeline stages exchange rows of one length
            lengths = [max(lengths)] * len(cells)
        return [
            self._row([slots[number] for number in cell], plan, -(-max(length, 1) // multiple) * multiple)
            for cell, plan, length in zip(cells, plans, lengths, strict=True)
        ]

    def _image_plans(self, slots: Sequence[Slot], arrangement: Arrangement, replica: int) -> list[ImagePlan]:
        """For each micro-batch: its images, and those that this rank encodes."""
        cells, encoder = arrangement.cells[replica], self.part.encoder
        shapes = [[shape for number in cell for shape in slots[number].load.shapes] for cell in cells]
        if arrangement.encoders is not None:
            plans = [
                np.concatenate([np.zeros(0, np.int64), *(arrangement.encoders[n] for n in cell)]) for cell in cells
            ]
            return [ImagePlan(len(plan), np.flatnonzero(plan == encoder), plan) for plan in plans]
        shares = self.part.shares(shapes, replica, any_size=self.fetcher.processor.any_size)
        return [ImagePlan(len(images), share) for images, share in zip(shapes, shares, strict=True)]

    def _row(self, slots: Sequence[Slot], plan: ImagePlan, length: int) -> Batch:
        wanted = of_each(plan.held, [len(slot.load.shapes) for slot in slots])
        samples = [
            self.fetcher.fetch_good(slot.source, slot.index, only) for slot, only in zip(slots, wanted, strict=True)
        ]
        return packed_row(samples, self.fetcher, plan, length)


def packed_row(samples: Sequence[ProcessedSample], fetcher: SampleFetcher, plan: ImagePlan, length: int) -> Batch:
    """One row `[1, length]`: the documents of the samples one after another; what is left is one more.

    Args:
        samples: With the images that this rank encodes.
        fetcher: Its processor pads and normalises.
        plan: Of the row's images.
        length: S.
    """
    import torch

    processor = fetcher.processor
    tokens, labels = np.full(length, processor.pad_id, np.int64), np.full(length, IGNORE, np.int64)
    borders = [0]
    for sample in samples:
        start, size = borders[-1], len(sample.ids)
        tokens[start : start + size] = sample.ids
        labels[start : start + size - 1] = targets(sample)
        borders += [start + end for end in sample.ends or (size,)]
    used = borders[-1]
    pixels = processor.normalise([image for sample in samples for image in sample.pixels])
    return Batch(
        tokens=torch.from_numpy(tokens[None]),
        labels=torch.from_numpy(labels[None]),
        images=torch.from_numpy(pixels),
        lengths=torch.tensor([used]),
        ids=[name for sample in samples for name in sample.names or (sample.id,)],
        cu_seqlens=torch.tensor(borders if used == length else [*borders, length], dtype=torch.int32),
        image_plan=plan,
        shapes=shapes_of(samples, processor),
    )
