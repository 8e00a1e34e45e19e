"""JSON files of samples, images in files beside them: JSONL, LLaVA's and ShareGPT's JSON, OpenAI's messages."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.data.sample import MAX_SAMPLE_BYTES, Location, RawSample, SampleError
from loongforge.data.sources.base import Part, find_part, number_through
from loongforge.data.sources.files import FileReader, base_name, folder_of
from loongforge.data.sources.record import make_sample, parse_record
from loongforge.data.sources.references import ImageFolder, Reader
from loongforge.data.sources.spans import load_spans


class RecordSource:
    """Records of several JSON files, numbered through; only their positions are kept in memory."""

    def __init__(self, name: str, files: Sequence[str], image_dir: str | None = None, index_dir: str | None = None):
        self.name = name
        self.image_dir = image_dir
        self._spans = [load_spans(file, index_dir) for file in files]
        self.parts: Sequence[Part] = number_through(files, [len(spans) for _, spans in self._spans])
        self._images = [ImageFolder(folder_of(file) if image_dir is None else image_dir) for file in files]
        self._reader = FileReader()

    def __len__(self) -> int:
        return self.parts[-1].stop

    def load(self, index: int, max_bytes: int = MAX_SAMPLE_BYTES) -> RawSample:
        """Reads one sample; SampleError where it is malformed, or larger than `max_bytes`."""
        part, entry = find_part(self.parts, index)
        file = self.parts[part].path
        _, start, end = self._spans[part][1][entry].tolist()
        if end - start > max_bytes:
            raise SampleError(
                f"it has {end - start} bytes, more than data.max_sample_bytes={max_bytes}", problem="too_many_bytes"
            )

        def named(names: Sequence[str]) -> list[Reader]:
            return self._images[part].readers(names, max_bytes)

        record = parse_record(self._reader.read(file, start, end - start))
        return make_sample(f"{base_name(file)}:{self._key(part, entry)}", record, named=named)

    def locate(self, index: int) -> Location:
        """Says where a sample lies, without reading it."""
        part, entry = find_part(self.parts, index)
        return Location(self.name, self.parts[part].path, self._key(part, entry))

    def _key(self, part: int, entry: int) -> str:
        unit, spans = self._spans[part]
        return f"{unit} {spans[entry, 0]}"
