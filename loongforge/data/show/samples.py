"""Picks the samples that are shown: those of a run, in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loongforge.config.schema import DataConfig
from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.order import SampleOrder
from loongforge.data.preview import Preview, preview
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import Location, RawSample
from loongforge.data.sources import open_sources


@dataclass(frozen=True)
class Shown:
    """A sample to look at."""

    position: int
    """In the order of training, or of the held-out set."""
    location: Location
    preview: Preview | None
    problem: str = ""
    """Why there is no preview: a run would not take this sample."""


class Gallery:
    """The samples of a recipe by position.

    Args:
        data: Where they come from.
        processor: The run's.
        held_out: Those of `data.eval`, not of `data.train`.
        seed: `trainer.seed`, which decides the order of training.

    Raises:
        UserError: data that cannot be opened.
    """

    def __init__(self, data: DataConfig, processor: SampleProcessor, *, held_out: bool, seed: int) -> None:
        spec = (data.eval or []) if held_out else data.train
        opened = open_sources(spec, "data.eval" if held_out else "data.train", data.image_dir)
        sizes = [len(source) for source, _ in opened]
        self.num_samples = sum(sizes)
        self._fetcher = SampleFetcher([source for source, _ in opened], processor)
        self._at = _in_sequence(sizes) if held_out else self._order(sizes, [w for _, w in opened], data, seed)

    @staticmethod
    def _order(sizes: Sequence[int], weights: Sequence[float], data: DataConfig, seed: int) -> _Places:
        return SampleOrder(sizes, weights, seed=seed, shuffle=data.shuffle).at

    def show(self, position: int) -> Shown:
        """The sample at a position, or what is wrong with it."""
        source, index = self._at(position)
        location = self._fetcher.sources[source].locate(index)
        processor = self._fetcher.processor

        def process(raw: RawSample) -> Preview:
            return preview(processor(raw), processor, raw)

        try:
            return Shown(position, location, self._fetcher.apply(source, index, process))
        except BadSampleError as error:
            return Shown(position, location, None, error.reason)

    def length(self, position: int) -> int:
        """Tokens of the sample at a position; 0 for a bad one."""
        try:
            return len(self._fetcher.fetch(*self._at(position)).ids)
        except BadSampleError:
            return 0


_Places = Callable[[int], tuple[int, int]]


def _in_sequence(sizes: Sequence[int]) -> _Places:
    everything = [(source, index) for source, size in enumerate(sizes) for index in range(size)]
    return everything.__getitem__
