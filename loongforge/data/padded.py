"""Padded steps: micro-batches of as many samples each, in the global order, as long as the longest of the replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loongforge.data.batch import BadSample, Batch, StepData, collate, padded_length
from loongforge.data.fetch import SampleFetcher
from loongforge.data.part import Part, of_each
from loongforge.data.processed import ProcessedSample
from loongforge.data.replacement import GoodSamples
from loongforge.parallel.routes import ImagePlan


@dataclass(frozen=True)
class _Read:
    """A sample and where it came from."""

    source: int
    index: int
    sample: ProcessedSample


@dataclass(frozen=True)
class PaddedSteps:
    """Makes this rank's part of any step."""

    good: GoodSamples
    fetcher: SampleFetcher
    global_batch_size: int
    micro_batch_size: int
    replicas: Sequence[int]
    """LLM replicas that this rank works on."""
    dp_size: int
    pad_multiple: int
    part: Part | None
    """Says which images this rank encodes; None: all are read."""

    def make(self, step: int) -> StepData:
        """Micro-batches of a step; see `TrainLoader.load`."""
        bad: dict[int, list[BadSample]] = {replica: [] for replica in self.replicas}
        return StepData({replica: self._replica(step, replica, bad[replica]) for replica in bad}, bad)

    def _positions(self, step: int, micro_batch: int, replica: int) -> range:
        rows = self.micro_batch_size
        first = step * self.global_batch_size + (micro_batch * self.dp_size + replica) * rows
        return range(first, first + rows)

    def _replica(self, step: int, replica: int, bad: list[BadSample]) -> list[Batch]:
        number = self.global_batch_size // (self.micro_batch_size * self.dp_size)
        groups = [
            [self.good.at(position, step, bad, self._read) for position in self._positions(step, m, replica)]
            for m in range(number)
        ]
        plans = self._image_plans(groups, replica)
        samples = [self._with_images(group, plan) for group, plan in zip(groups, plans, strict=True)]
        length = padded_length([sample for group in samples for sample in group], self.pad_multiple)
        rows, processor = self.micro_batch_size, self.fetcher.processor
        return [
            collate(group, processor, rows=rows, length=length, image_plan=plan)
            for group, plan in zip(samples, plans, strict=True)
        ]

    @property
    def _reads_all(self) -> bool:
        """To replace bad images alike, all ranks have to see all of them."""
        return self.part is None or self.good.skip

    def _read(self, source: int, index: int) -> _Read:
        return _Read(source, index, self.fetcher.fetch(source, index, None if self._reads_all else ()))

    def _image_plans(self, groups: Sequence[Sequence[_Read]], replica: int) -> list[ImagePlan | None]:
        if self.part is None:
            return [None] * len(groups)
        shapes = [[shape for read in group for shape in read.sample.shapes] for group in groups]
        if self._reads_all:
            return [ImagePlan(len(images), np.arange(len(images))) for images in shapes]
        held = self.part.shares(shapes, replica, any_size=self.fetcher.processor.any_size)
        return [ImagePlan(len(images), share) for images, share in zip(shapes, held, strict=True)]

    def _with_images(self, group: Sequence[_Read], plan: ImagePlan | None) -> list[ProcessedSample]:
        if plan is None or self._reads_all:
            return [read.sample for read in group]
        wanted = of_each(plan.held, [read.sample.num_units for read in group])
        return [
            self.fetcher.fetch_good(read.source, read.index, only) if only != () else read.sample
            for read, only in zip(group, wanted, strict=True)
        ]
