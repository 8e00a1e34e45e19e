"""Parquet and Arrow files of samples, as the Hugging Face hub has them and `datasets` saves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loongforge.config.errors import UserError
from loongforge.data.sample import MAX_SAMPLE_BYTES, Location, RawSample, SampleError
from loongforge.data.sources.base import Part, find_part, number_through
from loongforge.data.sources.files import base_name, folder_of
from loongforge.data.sources.record import make_sample
from loongforge.data.sources.references import ImageFolder, Reader
from loongforge.data.sources.table_files import TableReader

if TYPE_CHECKING:
    import pyarrow as pa

_SPOKEN = ("messages", "conversations", "texts", "text")
_IMAGES = ("images", "image")


class TableSource:
    """Rows of several files, numbered through; other columns than those of a sample are never read."""

    def __init__(self, name: str, files: Sequence[str], image_dir: str | None = None):
        self.name = name
        self.image_dir = image_dir
        self._reader = TableReader(files)
        self.parts: Sequence[Part] = number_through(files, self._reader.sizes)
        if not len(self):
            raise UserError(f"{name} holds no samples")
        for part, file in enumerate(files):
            if not set(self._reader.columns(part)) & set(_SPOKEN):
                raise UserError(f"{file} has the columns {self._reader.columns(part)}, none of {', '.join(_SPOKEN)}")
        self._images = [ImageFolder(folder_of(file) if image_dir is None else image_dir) for file in files]

    def __len__(self) -> int:
        return self.parts[-1].stop

    def load(self, index: int, max_bytes: int = MAX_SAMPLE_BYTES) -> RawSample:
        """Reads one row; SampleError where it is malformed, or larger than `max_bytes`."""
        part, row = find_part(self.parts, index)
        present = self._reader.columns(part)
        text = self._reader.row(part, row, [column for column in ("id", "system", *_SPOKEN) if column in present])
        _check_bytes(text.nbytes, max_bytes)
        images = next((column for column in _IMAGES if column in present), None)
        cells = _cells(self._reader.row(part, row, [images])[0]) if images is not None else []
        _check_bytes(text.nbytes + sum(_size(cell) for cell in cells), max_bytes)

        def named(names: Sequence[str]) -> list[Reader]:
            return self._images[part].readers(names, max_bytes)

        record = {key: _plain(value) for key, value in text.to_pylist()[0].items() if value is not None}
        given = [_reader(cell, number, named) for number, cell in enumerate(cells)]
        return make_sample(f"{base_name(self.parts[part].path)}:row {row}", record, named=named, given=given)

    def locate(self, index: int) -> Location:
        """Says where a sample lies, without reading it."""
        part, row = find_part(self.parts, index)
        return Location(self.name, self.parts[part].path, f"row {row}")


def _check_bytes(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise SampleError(f"it has {size} bytes, more than data.max_sample_bytes={max_bytes}", problem="too_many_bytes")


def _plain(value: Any) -> Any:
    """Without the nulls that stand for keys which other rows have; a table of messages becomes a list of them."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value and all(isinstance(column, list) for column in value.values()):  # how `Sequence({...})` is stored
        return [_plain(dict(zip(value, row, strict=True))) for row in zip(*value.values(), strict=True)]
    return {key: _plain(part) for key, part in value.items() if part is not None}


def _cells(column: pa.ChunkedArray) -> list[pa.Scalar]:
    """The images of a row as they are stored: none, one, or a list of them."""
    import pyarrow.types as types

    cell = column[0]
    if not cell.is_valid:
        return []
    is_list = types.is_list(cell.type) or types.is_large_list(cell.type) or types.is_fixed_size_list(cell.type)
    return list(cell.values) if is_list else [cell]


def _content(cell: pa.Scalar) -> pa.Scalar:
    """The bytes of an image (`{"bytes", "path"}` or bytes alone), or else its path."""
    import pyarrow.types as types

    if not types.is_struct(cell.type) or not cell.is_valid:
        return cell
    fields = [cell[name] for name in ("bytes", "path") if name in cell.type.names]
    return next((field for field in fields if field.is_valid), cell)


def _size(cell: pa.Scalar) -> int:
    content = _content(cell)
    return len(content.as_buffer()) if hasattr(content, "as_buffer") and content.is_valid else 0


def _reader(cell: pa.Scalar, number: int, named: Any) -> Reader:
    import pyarrow.types as types

    content = _content(cell)
    if content.is_valid and (types.is_binary(content.type) or types.is_large_binary(content.type)):
        return content.as_buffer().to_pybytes
    if content.is_valid and (types.is_string(content.type) or types.is_large_string(content.type)):
        return named([content.as_py()])[0]
    raise SampleError(
        f"image {number} is {cell.as_py()!r:.80}; expected {{'bytes', 'path'}}, bytes, or a path", problem="wrong_type"
    )
