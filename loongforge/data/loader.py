"""Training batches as a pure function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from loongforge.config.errors import UserError
from loongforge.config.schema import DataConfig
from loongforge.data.arrange import Rules
from loongforge.data.balance import CostModel
from loongforge.data.batch import StepData
from loongforge.data.fetch import SampleFetcher
from loongforge.data.metadata import MetadataTable
from loongforge.data.order import SampleOrder
from loongforge.data.packed import PackedSteps
from loongforge.data.padded import PaddedSteps
from loongforge.data.part import Part
from loongforge.data.processing import SampleProcessor
from loongforge.data.replacement import GoodSamples
from loongforge.data.sources import Source, open_sources


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
        part: Part | None = None,
        packing: Rules | None = None,
    ):
        """Args:

        data: sources, policy for bad samples, prefetch.
        processor: makes tokens and pixels.
        seed: decides the order.
        global_batch_size: samples of a step over all ranks.
        micro_batch_size: samples of a padded batch (B).
        replicas: data-parallel replicas that this rank works on.
        dp_size: number of data-parallel replicas.
        pad_multiple: S is a multiple of this (tensor and context parallelism divide the rows).
        part: this rank's in the layout: it reads the images that it encodes; None: all images are read.
        packing: how samples are packed, with `part`; None: rows are padded.

        Raises:
            UserError: sizes that do not divide, or data that cannot be opened.
        """
        if packing is None and global_batch_size % (micro_batch_size * dp_size):
            raise UserError(
                f"trainer.global_batch_size={global_batch_size} must be a multiple of trainer.micro_batch_size="
                f"{micro_batch_size} x {dp_size} data-parallel ranks = {micro_batch_size * dp_size}"
            )
        opened = open_sources(data.train, "data.train", data.image_dir, data.index_dir)
        self.sources: list[Source] = [source for source, _ in opened]
        sizes, weights = [len(source) for source, _ in opened], [weight for _, weight in opened]
        self.order = SampleOrder(sizes, weights, seed=seed, shuffle=data.shuffle)
        self.fetcher = SampleFetcher(self.sources, processor)
        self.global_batch_size = global_batch_size
        good = GoodSamples(self.order, self.sources, data.bad_sample == "skip")
        self._steps: PackedSteps | PaddedSteps
        if packing is not None:
            assert part is not None
            table = MetadataTable(
                self.sources, processor, decode=good.skip, index_dir=data.index_dir, fetcher=self.fetcher
            )
            self._steps = PackedSteps(good, self.fetcher, table, packing, part, global_batch_size)
        else:
            self._steps = PaddedSteps(
                good, self.fetcher, global_batch_size, micro_batch_size, replicas, dp_size, pad_multiple, part
            )
        self._prefetch = data.prefetch
        self._ahead: dict[int, Future[StepData]] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="data") if data.prefetch > 0 else None

    @property
    def num_samples(self) -> int:
        """Samples of all sources together."""
        return sum(len(source) for source in self.sources)

    def epoch(self, step: int) -> float:
        """Epochs completed before `step`, of the source that is furthest."""
        return self.order.epoch(step * self.global_batch_size)

    @property
    def costs(self) -> list[tuple[int, CostModel]]:
        """Which costs of samples hold from which step on, besides the recipe's."""
        return self._steps.costs if isinstance(self._steps, PackedSteps) else []

    def use_cost(self, first: int, cost: CostModel) -> None:
        """Plans from step `first` on with other costs. The same on every rank, before any has prepared that step."""
        assert isinstance(self._steps, PackedSteps)
        self._steps.costs.append((first, cost))

    def load(self, step: int) -> StepData:
        """Micro-batches of a step (0-based).

        Raises:
            UserError: a bad sample under the policy `fail`, or nothing but bad samples; it names the sample.
        """
        if self._worker is None:
            return self._steps.make(step)
        wanted = range(step, step + self._prefetch + 1)
        for other in [other for other in self._ahead if other not in wanted]:
            self._ahead.pop(other).cancel()
        for other in wanted:
            if other not in self._ahead:
                self._ahead[other] = self._worker.submit(self._steps.make, other)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """Ends the background thread; the loader cannot be used afterwards."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
