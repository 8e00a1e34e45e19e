"""Packs the samples of one window and writes their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample
from loongforge.data.check.outlook import BatchShape, padded_tokens
from loongforge.data.fetch import BadSampleError, SampleFetcher
from loongforge.data.meta_columns import MetaColumns
from loongforge.data.meta_index import meta_path, write_index
from loongforge.data.offline.budget import Measured, rows_of
from loongforge.data.offline.job import Job
from loongforge.data.offline.measuring import Measuring, Place
from loongforge.data.offline.report import Packed
from loongforge.data.sample import SampleError, SampleMeta
from loongforge.data.sources.files import stamp
from loongforge.data.sources.rows import row_members
from loongforge.data.sources.shard_writer import write_shards
from loongforge.data.sources.shards import ShardSource


class Window:
    """One window of a job."""

    def __init__(self, job: Job, number: int, positions: range):
        self._job, self._number = job, number
        self._places = [job.order.at(position) for position in positions]
        self._fetcher = SampleFetcher(job.sources, job.processor)

    def write(self, folder: Path, measuring: Measuring) -> tuple[Packed, list[BadSample]]:
        """Writes its shards with their indexes.

        Returns:
            What was packed, and what was left out.

        Raises:
            UserError: a bad sample that is not to be left out.
        """
        kept: list[tuple[Place, SampleMeta, Measured]] = []
        bad: list[BadSample] = []
        for place, meta in zip(self._places, measuring.of(self._places), strict=True):
            try:
                kept.append((place, meta, self._measured(place, meta)))
            except BadSampleError as error:
                if not (self._job.data.bad_sample == "skip" or error.drop):
                    raise error.as_user_error() from error
                bad.append(error.as_record(step=-1, replaced_by=""))
        rows = rows_of([measured for _, _, measured in kept], self._job.budget)
        contents = self._contents([[kept[number][0] for number in row] for row in rows])
        shards = write_shards(folder, f"rows-{self._number:05d}", contents, self._job.shard_rows)
        self._index(shards, [_joined([kept[number][1] for number in row]) for row in rows])
        tokens = np.array([measured.tokens for _, _, measured in kept], np.int64)
        compared, padded = _padded(tokens, self._job.shape)
        counts = Packed(
            samples=len(kept),
            left_out=len(bad),
            images=sum(len(meta.image_sizes) for _, meta, _ in kept),
            tokens=int(tokens.sum()),
            rows=len(rows),
            shards=len(shards),
            size=sum(path.stat().st_size for path in shards),
            compared=compared,
            padded=padded,
        )
        return counts, bad

    def _measured(self, place: Place, meta: SampleMeta) -> Measured:
        """BadSampleError where a sample cannot be packed."""
        if meta.problem is not None:
            self._fetcher.fetch(*place)  # says which sample it is
            raise UserError(f"{self._job.sources[place[0]].locate(place[1])} has changed since it was indexed")
        measured = Measured.of(meta, self._job.processor, self._job.budget)
        why = measured.above(self._job.budget)
        if why is not None:
            location, drop = self._job.sources[place[0]].locate(place[1]), self._job.processor.too_long == "drop"
            raise BadSampleError(location, location.key, why, problem="too_long", drop=drop)
        return measured

    def _contents(self, rows: Sequence[Sequence[Place]]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """(key, members) of each row; one is in memory at a time."""
        most = self._job.processor.max_sample_bytes
        for number, row in enumerate(rows):
            try:
                members = row_members(self._job.sources[source].load(index, most) for source, index in row)
            except SampleError as error:
                raise UserError(f"the data have changed while they were packed: {error}") from error
            yield f"row{self._number:05d}_{number:06d}", members

    def _index(self, shards: Sequence[Path], metas: Sequence[SampleMeta]) -> None:
        """What is known need not be measured again."""
        if not shards:
            return
        source = ShardSource("rows", [str(path) for path in shards])
        for number, part in enumerate(source.parts):
            columns = MetaColumns(part.stop - part.start)
            for place, meta in enumerate(metas[part.start : part.stop]):
                columns.put(place, meta)
            path = meta_path(part.path, None)
            assert path is not None
            write_index(source, number, self._job.processor, True, path, columns, stamp(part.path))


def _joined(metas: Sequence[SampleMeta]) -> SampleMeta:
    sizes = tuple(size for meta in metas for size in meta.image_sizes)
    return SampleMeta(sum(meta.text_tokens for meta in metas), sum(meta.label_tokens for meta in metas), sizes)


def _padded(tokens: np.ndarray, shape: BatchShape | None) -> tuple[int, int]:
    """Tokens of the samples that fill whole global batches, and what they take when padded."""
    if shape is None or len(tokens) < shape.global_batch_size:
        return 0, 0
    whole = tokens[: len(tokens) // shape.global_batch_size * shape.global_batch_size]
    return int(whole.sum()), padded_tokens(whole, shape)
