"""Training batches as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from loongforge.config.errors import UserError
from loongforge.config.schema import DataConfig
from loongforge.data.batch import BadSample, Batch, StepData, collate, padded_length
from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.metadata import MetadataTable
from loongforge.data.order import SampleOrder
from loongforge.data.packed import PackedSteps, Packing, Slot
from loongforge.data.processing import ProcessedSample, SampleProcessor
from loongforge.data.sources import Source, open_sources

Found = TypeVar("Found")

MAX_ATTEMPTS = 100
"""Bad samples in a row, at one position, that are replaced before giving up."""


class TrainLoader:
    """Gives a rank the micro-batches of any step, of every LLM replica that it works on.

    `load(step)` depends on nothing but the data, the seed and its arguments: the sample at every position of the global
    order is the same for every number of ranks, and a resumed run needs only its step. Steps ahead are prepared by a
    background thread, which changes when things are read and nothing else.
    """

    def __init__(
        self,
        data: DataConfig,
        processor: SampleProcessor,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        replicas: Sequence[int] = (0,),
        dp_size: int = 1,
        pad_multiple: int = 1,
        packing: Packing | None = None,
    ):
        """Args:

        data: sources, policy for bad samples, prefetch.
        processor: makes tokens and pixels.
        seed: decides the order.
        global_batch_size: samples of a step over all ranks.
        micro_batch_size: samples of a batch (B).
        replicas: data-parallel replicas that this rank works on.
        dp_size: number of data-parallel replicas.
        pad_multiple: S is a multiple of this (tensor and context parallelism divide the rows).
        packing: None: rows are padded.

        Raises:
            UserError: sizes that do not divide, or data that cannot be opened.
        """
        if packing is None and global_batch_size % (micro_batch_size * dp_size):
            raise UserError(
                f"trainer.global_batch_size={global_batch_size} must be a multiple of trainer.micro_batch_size="
                f"{micro_batch_size} x {dp_size} data-parallel ranks = {micro_batch_size * dp_size}"
            )
        opened = open_sources(data.train, "data.train", data.image_dir)
        self.sources: list[Source] = [source for source, _ in opened]
        sizes, weights = [len(source) for source, _ in opened], [weight for _, weight in opened]
        self.order = SampleOrder(sizes, weights, seed=seed, shuffle=data.shuffle)
        self.fetcher = SampleFetcher(self.sources, processor)
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.num_micro_batches = global_batch_size // (micro_batch_size * dp_size)
        self._replicas = tuple(replicas)
        self._dp_size = dp_size
        self._pad_multiple = pad_multiple
        self._skip = data.bad_sample == "skip"
        self._prefetch = data.prefetch
        self._packed = self._packed_steps(packing) if packing is not None else None
        self._ahead: dict[int, Future[StepData]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="data") if data.prefetch > 0 else None

    @property
    def num_samples(self) -> int:
        """Samples of all sources together."""
        return sum(len(source) for source in self.sources)

    def epoch(self, step: int) -> float:
        """Epochs completed before `step`, of the source that is furthest."""
        return self.order.epoch(step * self.global_batch_size)

    def load(self, step: int) -> StepData:
        """Micro-batches of a step (0-based).

        Raises:
            UserError: a bad sample under the policy `fail`, or nothing but bad samples; it names the sample.
        """
        if self._worker is None:
            return self._make(step)
        wanted = range(step, step + self._prefetch + 1)
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        for other in wanted:
            if other not in self._ahead:
                self._ahead[other] = self._worker.submit(self._make, other)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """Ends the background thread; the loader cannot be used afterwards."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)

    def positions(self, step: int, micro_batch: int, replica: int) -> range:
        """Positions of the global order that a replica's micro-batch takes."""
        rows = self.micro_batch_size
        first = step * self.global_batch_size + (micro_batch * self._dp_size + replica) * rows
        return range(first, first + rows)

    def _packed_steps(self, packing: Packing) -> PackedSteps:
        table = MetadataTable(self.sources, self.fetcher.processor, decode=self._skip)

        def slot(source: int, index: int) -> Slot:
            meta = table.get(source, index)
            if meta.problem is not None:
                self.fetcher.fetch(source, index)  # says which sample it is
                raise UserError(f"{self.sources[source].locate(index)} has changed since it was indexed")
            return Slot(source, index, meta)

        def find(position: int, step: int, bad: list[BadSample]) -> Slot:
            return self._good(position, step, bad, slot)

        return PackedSteps(self.fetcher, packing, find, global_batch_size=self.global_batch_size)

    def _make(self, step: int) -> StepData:
        if self._packed is not None:
            return self._packed.make(step)
        bad: dict[int, list[BadSample]] = {replica: [] for replica in self._replicas}
        return StepData({replica: self._micro_batches(step, replica, bad[replica]) for replica in bad}, bad)

    def _micro_batches(self, step: int, replica: int, bad: list[BadSample]) -> list[Batch]:
        groups = [
            [self._sample(position, step, bad) for position in self.positions(step, m, replica)]
            for m in range(self.num_micro_batches)
        ]
        length = padded_length([sample for group in groups for sample in group], self._pad_multiple)
        rows, processor = self.micro_batch_size, self.fetcher.processor
        return [collate(group, processor, rows=rows, length=length) for group in groups]

    def _sample(self, position: int, step: int, bad: list[BadSample]) -> ProcessedSample:
        return self._good(position, step, bad, self.fetcher.fetch)

    def _good(self, position: int, step: int, bad: list[BadSample], get: Callable[[int, int], Found]) -> Found:
        """What `get` finds at a position, or the first good replacement; these depend on the position alone."""
        source, index = self.order.at(position)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return get(source, index)
            except BadSampleError as error:
                if not (self._skip or error.drop):
                    raise error.as_user_error() from error
                source, index = self.order.replacement(position, attempt)
                bad.append(error.as_record(step, replaced_by=str(self.sources[source].locate(index))))
        raise UserError(
            f"{MAX_ATTEMPTS} samples of {self.sources[source].name} in a row are bad; the last one: "
            f"{bad[-1].key} of {bad[-1].shard}: {bad[-1].reason}"
        )
