"""The held-out set, in order, the same number of batches on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loongforge.config.errors import UserError
from loongforge.config.schema import DataConfig
from loongforge.data.batch import BadSample, Batch, collate, padded_length, shapes_of
from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.processed import ProcessedSample
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import RawSample, SampleError
from loongforge.data.sources import open_sources
from loongforge.parallel.images import ImageShape


@dataclass(frozen=True)
class Example:
    """A held-out sample to be answered by generation."""

    id: str
    question: str
    """What the model is shown, as text with placeholders."""
    reference: str
    """The answer that the data gives."""
    prompt: list[int]
    """Token ids to continue, image tokens expanded."""
    images: np.ndarray
    """float32 [N, 3, H, W]; where images keep their size, their rows of pixels."""
    shapes: list[ImageShape] | None = None
    """Of the images; None: they are of the encoder's one size."""


class EvalLoader:
    """Iterates over batches of the held-out set, by LLM replica; can be iterated again and again."""

    def __init__(
        self,
        data: DataConfig,
        processor: SampleProcessor,
        *,
        micro_batch_size: int,
        replicas: Sequence[int] = (0,),
        dp_size: int = 1,
        pad_multiple: int = 1,
        limit: int | None = None,
    ):
        """Args:

        data: `data.eval` must be given.
        processor: makes tokens and pixels.
        micro_batch_size: rows of every batch (B); rows that are left over are padding with the id "".
        replicas: data-parallel replicas that this rank works on.
        dp_size: number of data-parallel replicas.
        pad_multiple: S is a multiple of this.
        limit: at most so many samples, spread evenly over the set; None: all.

        Raises:
            UserError: no held-out data, or it cannot be opened.
        """
        if data.eval is None:
            raise UserError("data.eval is not set: there is no held-out data; give a path, pattern or list")
        self.sources = [source for source, _ in open_sources(data.eval, "data.eval", data.image_dir, data.index_dir)]
        everything = [(s, i) for s, source in enumerate(self.sources) for i in range(len(source))]
        self._chosen = everything if limit is None else [everything[i] for i in spread(len(everything), limit)]
        self.processor = processor
        self._fetcher = SampleFetcher(self.sources, processor)
        self.bad: list[BadSample] = []
        """Samples left out so far (policy `skip`), each once."""
        self._rows = micro_batch_size
        self._replicas = tuple(replicas)
        self._dp_size = dp_size
        self._pad_multiple = pad_multiple
        self._skip = data.bad_sample == "skip"

    @property
    def num_samples(self) -> int:
        """Samples over all ranks."""
        return len(self._chosen)

    def __len__(self) -> int:
        """Batches of every rank."""
        return -(-len(self._chosen) // (self._rows * self._dp_size))

    def __iter__(self) -> Iterator[dict[int, Batch]]:
        for number in range(len(self)):
            yield {replica: self._batch(number, replica) for replica in self._replicas}

    def _batch(self, number: int, replica: int) -> Batch:
        first = (number * self._dp_size + replica) * self._rows
        loaded = [self._load(*place) for place in self._chosen[first : first + self._rows]]
        samples = [sample for sample in loaded if sample is not None]
        length = padded_length(samples, self._pad_multiple)
        return collate(samples, self.processor, rows=self._rows, length=length)

    def examples(self, number: int) -> list[Example]:
        """Samples to generate answers for, spread evenly over the set; bad ones are left out."""
        chosen = [self._chosen[i] for i in spread(len(self._chosen), number)]
        return [example for example in (self._example(*place) for place in chosen) if example is not None]

    def _example(self, source: int, index: int) -> Example | None:
        sample = self._load(source, index)
        if sample is None:
            return None
        raw = self.sources[source].load(index, self.processor.max_sample_bytes)
        if raw.text is not None:
            return self._continuation(raw, sample)
        *prompt, answer = raw.messages
        try:
            ids = self.processor.render_prompt(prompt, sample.images)
        except SampleError:  # a sample that `data.too_long=truncate_text` has cut
            return None
        pixels = self.processor.normalise(sample.pixels)
        question, reference = (plain(message["content"]) for message in (prompt[-1], answer))
        return Example(raw.id, question, reference, ids, pixels, shapes_of([sample], self.processor))

    def _continuation(self, raw: RawSample, sample: ProcessedSample) -> Example:
        """Raw text: its first half is the question, the second the answer."""
        half = len(sample.ids) // 2
        first, second = (
            self.processor.decode(part.tolist(), skip_special_tokens=True) for part in np.split(sample.ids, [half])
        )
        return Example(raw.id, first, second, sample.ids[:half].tolist(), self.processor.normalise([]))

    def _load(self, source: int, index: int) -> ProcessedSample | None:
        try:
            return self._fetcher.fetch(source, index)
        except BadSampleError as error:
            if not (self._skip or error.drop):
                raise error.as_user_error() from error
            record = error.as_record(step=-1, replaced_by="")
            if record not in self.bad:
                self.bad.append(record)
            return None


def spread(total: int, number: int) -> list[int]:
    """At most `number` of `range(total)`, evenly spaced, beginning with 0."""
    number = min(number, total)
    return [i * total // number for i in range(number)]


def plain(content: str | list[dict[str, str]]) -> str:
    """A message's content as text with placeholders."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else "<image>" for part in content)
