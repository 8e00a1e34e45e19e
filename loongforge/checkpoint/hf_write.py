"""Writing safetensors files tensor by tensor: never more than one tensor in memory, whatever the size of a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from loongforge.checkpoint.hf_folder import INDEX, SINGLE, STORED
from loongforge.config.errors import UserError

_SPELLED = {dtype: name for name, dtype in STORED.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `500MB`, `200KB` or a number.

    Raises:
        UserError: it is not written like that.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = (text[:-2], units[text[-2:].upper()]) if text[-2:].upper() in units else (text, 1)
    try:
        found = int(float(number) * unit)
    except ValueError:
        found = 0
    if found <= 0:
        raise UserError(f"--max-shard-size {text}: allowed are sizes like 5GB, 500MB or a number of bytes")
    return found


def write_safetensors(
    folder: Path, entries: Sequence[Entry], tensors: Iterable[torch.Tensor], *, max_bytes: int
) -> list[Path]:
    """Writes `model.safetensors`, or shards and their index.

    Args:
        folder: Exists.
        entries: What is written, in this order.
        tensors: The same tensors, each made when it is asked for; converted to the entry's type.
        max_bytes: Of a file, unless a single tensor has more.

    Returns:
        The files.
    """
    shards = _divided(entries, max_bytes)
    names = [SINGLE] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    source = iter(tensors)
    for file, shard in zip(names, shards, strict=True):
        with (folder / file).open("wb") as stream:
            _write_header(stream, shard)
            for entry in shard:
                _write_tensor(stream, entry, next(source))
            stream.flush()
            os.fsync(stream.fileno())
    if len(shards) > 1:
        files = {entry.name: file for file, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": sum(entry.nbytes for entry in entries)}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
    return [folder / file for file in names]


def _shard_name(number: int, count: int) -> str:
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def _divided(entries: Sequence[Entry], max_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return shards


def _write_header(stream: BinaryIO, entries: Sequence[Entry]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for entry in entries:
        end = start + entry.nbytes
        spelled = _SPELLED[entry.dtype]
        header[entry.name] = {"dtype": spelled, "shape": list(entry.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)


def _write_tensor(stream: BinaryIO, entry: Entry, tensor: torch.Tensor) -> None:
    assert tuple(tensor.shape) == entry.shape, entry.name
    flat = tensor.to(entry.dtype).contiguous().flatten()
    stream.write(flat.view(torch.uint8).numpy().data)
