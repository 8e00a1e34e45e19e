"""Where each tensor of a sharded checkpoint lies, as JSON: torch keeps the same table as a pickle, which is not read.

A pickle can run any code while it is loaded. Here tables are JSON, and contents are loaded with torch's weights-only
loader, which makes tensors and plain values alone.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from loongforge.config.errors import UserError

TABLE = "tensors.json"
_PICKLED_TABLE = ".metadata"


def write_table(metadata: Metadata, stored: Mapping[MetadataIndex, _StorageInfo], path: Path) -> None:
    """Writes the table of a checkpoint.

    Args:
        metadata: Types, shapes and chunks.
        stored: Where each chunk lies.
        path: The checkpoint's folder.
    """
    table: dict[str, Any] = {"tensors": {}, "objects": {}}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            table["tensors"][name] = {"dtype": dtype, "shape": list(entry.size), "chunks": []}
    sizes = {
        (name, tuple(chunk.offsets)): list(chunk.sizes)
        for name, entry in metadata.state_dict_metadata.items()
        for chunk in getattr(entry, "chunks", [])
    }
    for index, place in stored.items():
        where = {"file": place.relative_path, "start": place.offset, "length": place.length}
        if index.fqn in table["tensors"]:
            offsets = tuple(index.offset or ())
            chunk = {"offsets": list(offsets), "sizes": sizes[index.fqn, offsets], **where}
            table["tensors"][index.fqn]["chunks"].append(chunk)
        else:
            table["objects"][index.fqn] = where
    (path / TABLE).write_text(json.dumps(table))


def read_table(path: Path) -> dict[str, Any]:
    """`{"tensors": {name: {dtype, shape, chunks}}, "objects": {name: {file, start, length}}}` of a folder.

    Raises:
        UserError: it has none, or one that is a pickle.
    """
    pickled = path / _PICKLED_TABLE
    if pickled.exists():
        raise UserError(f"{pickled} is a pickle, which can run any code when it is loaded; it is not read")
    try:
        table = json.loads((path / TABLE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / TABLE}: {error}") from error
    for place in [*table["objects"].values(), *(c for t in table["tensors"].values() for c in t["chunks"])]:
        if Path(place["file"]).name != place["file"]:
            raise UserError(f"{path / TABLE} names a file outside its folder: {place['file']}")
    return dict(table)


def as_metadata(table: Mapping[str, Any]) -> Metadata:
    """The table in torch's form."""
    known: dict[str, Any] = {name: BytesStorageMetadata() for name in table["objects"]}
    stored = {MetadataIndex(name): _place(entry) for name, entry in table["objects"].items()}
    for name, entry in table["tensors"].items():
        chunks = [ChunkStorageMetadata(torch.Size(c["offsets"]), torch.Size(c["sizes"])) for c in entry["chunks"]]
        properties = TensorProperties(dtype=getattr(torch, entry["dtype"]))
        known[name] = TensorStorageMetadata(properties, torch.Size(entry["shape"]), chunks)
        for number, chunk in enumerate(entry["chunks"]):
            stored[MetadataIndex(name, torch.Size(chunk["offsets"]), number)] = _place(chunk)
    return Metadata(state_dict_metadata=known, storage_data=stored)


def _place(entry: Mapping[str, Any]) -> _StorageInfo:
    return _StorageInfo(entry["file"], entry["start"], entry["length"])


def load_safely(content: Any, where: object) -> Any:
    """What torch's weights-only loader makes of a file: tensors and plain values.

    Raises:
        UserError: it holds anything else, such as a call that a pickle would make.
    """
    try:
        return torch.load(content, map_location=lambda storage, _: storage, weights_only=True)  # all to the host
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"{where} is not loaded: it holds something else than tensors and plain values ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line or "operand" in line]
    return (named or lines or [type(error).__name__])[0]


class StoredTensors:
    """Full tensors of a checkpoint by global name, read one at a time under no layout at all.

    Args:
        path: A folder that `write_state` wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table: dict[str, Any] = read_table(path)["tensors"]
        self._keys: dict[str, tuple[str, int | None]] = {}
        for key, entry in self._table.items():
            head, layers, rest = key.partition(".layers.")
            if layers and not rest[:1].isdigit():  # megatron-core stacks the layers
                for number in range(entry["shape"][0]):
                    self._keys[f"{head}.layers.{number}.{rest}"] = key, number
            else:
                self._keys[key] = key, None

    def names(self, prefix: str) -> list[str]:
        """Global names that begin with a prefix, without it."""
        return [name.removeprefix(prefix) for name in self._keys if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the full tensor."""
        key, layer = self._keys[name]
        shape: list[int] = self._table[key]["shape"]
        return tuple(shape if layer is None else shape[1:])

    def dtype(self, name: str) -> torch.dtype:
        """As it is stored."""
        found = getattr(torch, self._table[self._keys[name][0]]["dtype"])
        assert isinstance(found, torch.dtype)
        return found

    def read(self, name: str) -> torch.Tensor:
        """The full tensor.

        Raises:
            UserError: a chunk that holds something else than a tensor.
        """
        key, layer = self._keys[name]
        result = torch.empty(self.shape(name), dtype=self.dtype(name))
        for chunk in self._table[key]["chunks"]:
            offsets, sizes = chunk["offsets"], chunk["sizes"]
            if layer is not None and not offsets[0] <= layer < offsets[0] + sizes[0]:
                continue
            content = self._content(chunk)
            if layer is not None:
                content, offsets = content[layer - offsets[0]], offsets[1:]
            result[_area(offsets, content.shape)] = content
        return result

    def _content(self, chunk: Mapping[str, Any]) -> torch.Tensor:
        file = self.path / chunk["file"]
        with file.open("rb") as stream:
            stream.seek(chunk["start"])
            found = load_safely(io.BytesIO(stream.read(chunk["length"])), file)
        assert isinstance(found, torch.Tensor)
        return found.view(chunk["sizes"])


def _area(offsets: Sequence[int], sizes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))
