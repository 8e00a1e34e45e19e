"""Parquet and Arrow files, read a few rows at a time."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from loongforge.config.errors import UserError
from loongforge.data.sources.files import is_url, open_file

if TYPE_CHECKING:
    import pyarrow as pa

CACHE_BYTES = 256 << 20
"""What a source keeps of the row groups that it read last."""

MAX_GROUP_BYTES = 2 << 30
"""A row group is read whole for any of its rows; a larger one is refused."""


class TableFile(Protocol):
    """A file of rows, in groups that are read whole."""

    rows: list[int]
    """Rows of each group."""
    columns: list[str]
    mapped: bool
    """Groups lie in mapped memory: reading one costs nothing, and nothing is gained from keeping it."""

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a group."""


def open_table(path: str) -> TableFile:
    """Opens a file by its ending: `.parquet`, `.arrow` or `.feather`.

    Raises:
        UserError: it cannot be read, or pyarrow is missing.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UserError(f"{path} needs the package pyarrow: pip install 'loongforge[hf]'") from error
    try:
        return ParquetTable(path) if path.endswith(".parquet") else ArrowTable(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {error}") from error


class ParquetTable:
    """A Parquet file; only its footer is in memory."""

    mapped = False

    def __init__(self, path: str):
        import pyarrow.parquet as pq

        self._path = path
        self._file = pq.ParquetFile(open_file(path) if is_url(path) else path, memory_map=not is_url(path))
        metadata = self._file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        self.rows = [group.num_rows for group in groups]
        self._bytes = [group.total_byte_size for group in groups]
        self.columns = list(self._file.schema_arrow.names)

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group."""
        if self._bytes[group] > MAX_GROUP_BYTES:
            raise UserError(
                f"row group {group} of {self._path} has {self._bytes[group] / 2**30:.1f} GiB and {self.rows[group]} "
                "rows, and is read whole for each of them; write the file with smaller row groups (row_group_size=100)"
            )
        return self._file.read_row_group(group, columns=list(columns), use_threads=False)


class ArrowTable:
    """An Arrow file as `datasets` saves it (a stream of record batches), or with a footer (Feather)."""

    def __init__(self, path: str):
        import pyarrow as pa

        self.mapped = not is_url(path)
        source = pa.memory_map(path) if self.mapped else pa.PythonFile(open_file(path), mode="r")
        try:
            reader = pa.ipc.open_file(source)
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except pa.ArrowInvalid:
            source.seek(0)
            self._batches = list(pa.ipc.open_stream(source))
        self.rows = [batch.num_rows for batch in self._batches]
        self.columns = list(self._batches[0].schema.names) if self._batches else []

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a record batch."""
        import pyarrow as pa

        return pa.Table.from_batches([self._batches[group]]).select(list(columns))


class TableReader:
    """Rows of several files, numbered through, with the groups that were read last at hand. Thread-safe."""

    def __init__(self, paths: Sequence[str]):
        self._paths = list(paths)
        self._open()

    def _open(self) -> None:
        self._files = [open_table(path) for path in self._paths]
        self._firsts = [[0, *itertools.accumulate(file.rows)] for file in self._files]
        self._kept: OrderedDict[tuple[int, int, tuple[str, ...]], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> list[str]:
        return self._paths

    def __setstate__(self, paths: list[str]) -> None:
        self._paths = paths
        self._open()

    @property
    def sizes(self) -> list[int]:
        """Rows of each file."""
        return [firsts[-1] for firsts in self._firsts]

    def columns(self, file: int) -> list[str]:
        """Names of a file's columns."""
        return self._files[file].columns

    def row(self, file: int, row: int, columns: Sequence[str]) -> pa.Table:
        """One row of some columns."""
        group = bisect.bisect_right(self._firsts[file], row) - 1
        return self._group(file, group, tuple(columns)).slice(row - self._firsts[file][group], 1)

    def _group(self, file: int, group: int, columns: tuple[str, ...]) -> pa.Table:
        key = (file, group, columns)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            table = self._files[file].read(group, columns)
            if not self._files[file].mapped:
                self._kept[key] = table
                while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
                    self._kept.popitem(last=False)
            return table
