"""Packed steps: the samples of a global batch as documents of full rows, divided over ranks by plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from loongforge.data.arrange import Arrangement, Rules, arrange
from loongforge.data.batch import IGNORE, BadSample, Batch, StepData
from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.processing import ProcessedSample
from loongforge.data.sample import SampleMeta
from loongforge.parallel.layout import Layout
from loongforge.parallel.routes import ImagePlan, image_shares


@dataclass(frozen=True)
class Slot:
    """A sample of a global batch."""

    source: int
    index: int
    meta: SampleMeta


@dataclass(frozen=True)
class Packing:
    """How this rank takes part in packed steps."""

    rules: Rules
    layout: Layout
    rank: int
    window: Callable[[int], int]
    """Micro-batches whose images are encoded together, of so many."""

    @property
    def encoder(self) -> int | None:
        """Replica of the vision encoder that this rank is a part of."""
        place = self.layout.vision.place(self.rank) if self.layout.vision is not None else None
        return None if place is None else place.dp

    def replicas(self, *, anywhere: bool) -> list[int]:
        """LLM replicas whose samples it reads: its own, and those whose images it may encode."""
        if anywhere and self.encoder is not None:
            return list(range(self.layout.dp))
        return list(self.layout.replicas(self.rank))


class PackedSteps:
    """Makes this rank's part of any step; every rank arranges the whole global batch alike, and reads its own part.

    Args:
        fetcher: Reads and processes samples.
        packing: Rules, and where this rank stands.
        find: The good sample of a position, `(position, step, bad)`; notes in `bad` what it leaves out.
        global_batch_size: Samples of a step.
    """

    def __init__(
        self,
        fetcher: SampleFetcher,
        packing: Packing,
        find: Callable[[int, int, list[BadSample]], Slot],
        *,
        global_batch_size: int,
    ) -> None:
        self.fetcher, self.find, self.global_batch_size = fetcher, find, global_batch_size
        self.rank, self.rules = packing, packing.rules

    def make(self, step: int) -> StepData:
        """Micro-batches of a step.

        Raises:
            UserError: a bad sample under the policy `fail`.
        """
        bad: list[BadSample] = []
        first = step * self.global_batch_size
        slots = [self.find(position, step, bad) for position in range(first, first + self.global_batch_size)]
        arrangement = arrange([slot.meta for slot in slots], self.rules)
        batches = {
            replica: self._replica(slots, arrangement, replica)
            for replica in self.rank.replicas(anywhere=arrangement.encoders is not None)
        }
        # every rank knows all that was left out; the first replica tells
        return StepData(batches, {replica: bad if replica == 0 else [] for replica in batches}, arrangement.fingerprint)

    def _replica(self, slots: Sequence[Slot], arrangement: Arrangement, replica: int) -> list[Batch]:
        cells = arrangement.cells[replica]
        plans = self._image_plans(slots, arrangement, replica)
        lengths = [sum(self._length(slots[number]) for number in cell) for cell in cells]
        multiple = self.rank.layout.sequence_multiple
        if self.rank.layout.llm.pp > 1:  # pipeline stages exchange rows of one length
            lengths = [max(lengths)] * len(cells)
        return [
            self._row([slots[number] for number in cell], plan, -(-max(length, 1) // multiple) * multiple)
            for cell, plan, length in zip(cells, plans, lengths, strict=True)
        ]

    def _length(self, slot: Slot) -> int:
        return slot.meta.text_tokens + len(slot.meta.image_sizes) * self.rules.image_tokens

    def _image_plans(self, slots: Sequence[Slot], arrangement: Arrangement, replica: int) -> list[ImagePlan]:
        """For each micro-batch: its images, and those that this rank encodes."""
        cells, encoder = arrangement.cells[replica], self.rank.encoder
        counts = [sum(len(slots[number].meta.image_sizes) for number in cell) for cell in cells]
        if arrangement.encoders is not None:
            plans = [
                np.concatenate([np.zeros(0, np.int64), *(arrangement.encoders[n] for n in cell)]) for cell in cells
            ]
            return [ImagePlan(len(plan), np.flatnonzero(plan == encoder), plan) for plan in plans]
        shares = self._even_shares(counts, replica)
        return [ImagePlan(count, share) for count, share in zip(counts, shares, strict=True)]

    def _even_shares(self, counts: Sequence[int], replica: int) -> list[np.ndarray]:
        """Images of each micro-batch that fall to this rank where each window's are shared evenly."""
        encoder, window = self.rank.encoder, self.rank.window(len(counts))
        nothing = np.zeros(0, np.int64)
        if encoder is None or replica not in self.rank.layout.served("vision", encoder):
            return [nothing] * len(counts)
        found = []
        for first in range(0, len(counts), window):
            inside = counts[first : first + window]
            share = image_shares(self.rank.layout, "vision", replica, sum(inside)).get(encoder, range(0))
            borders = np.cumsum([0, *inside])
            for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
                found.append(np.arange(max(low, share.start), min(high, share.stop), dtype=np.int64) - low)
        return found

    def _row(self, slots: Sequence[Slot], plan: ImagePlan, length: int) -> Batch:
        held, samples, before = set(plan.held.tolist()), [], 0
        for slot in slots:
            count = len(slot.meta.image_sizes)
            wanted = tuple(i for i in range(count) if before + i in held)
            samples.append(self._fetch(slot, None if len(wanted) == count else wanted))
            before += count
        return packed_row(samples, self.fetcher, plan, length)

    def _fetch(self, slot: Slot, only: tuple[int, ...] | None) -> ProcessedSample:
        try:
            return self.fetcher.fetch(slot.source, slot.index, only)
        except BadSampleError as error:
            raise error.as_user_error() from error


def packed_row(samples: Sequence[ProcessedSample], fetcher: SampleFetcher, plan: ImagePlan, length: int) -> Batch:
    """One row `[1, length]`: the samples one after another, each a document; what is left is one more.

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
        labels[start : start + size - 1] = np.where(sample.learned[1:], sample.ids[1:], IGNORE)
        borders.append(start + size)
    used = borders[-1]
    pixels = processor.normalise([image for sample in samples for image in sample.pixels])
    return Batch(
        tokens=torch.from_numpy(tokens[None]),
        labels=torch.from_numpy(labels[None]),
        images=torch.from_numpy(pixels),
        lengths=torch.tensor([used]),
        ids=[sample.id for sample in samples],
        cu_seqlens=torch.tensor(borders if used == length else [*borders, length], dtype=torch.int32),
        image_plan=plan,
    )
