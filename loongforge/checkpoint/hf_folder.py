"""Reading weights from a folder in Hugging Face format: safetensors only, part by part; nothing is unpickled.

Files are read with ordinary reads instead of memory maps, so that a rank's memory holds what it asked for and no more.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loongforge.checkpoint.json_file import read_json
from loongforge.config.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
STORED = {**DTYPES, **_INTEGERS, "BOOL": torch.bool}
"""With types that no weight has, but buffers that are kept aside."""
_BLOCK = 32 << 20
"""Bytes read at once where only columns are wanted."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies."""

    file: Path
    dtype: str
    """As safetensors spells it: F32, BF16 ..."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor."""
        return math.prod(self.shape) * STORED[self.dtype].itemsize if self.dtype in STORED else 0


class HFFolder:
    """The tensors of a folder, read when they are asked for.

    Args:
        path: Folder with `config.json` and `model.safetensors`, or its shards and their index.

    Raises:
        UserError: no such folder, no safetensors in it, or a shard that is missing or torn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        headers: dict[Path, dict[str, StoredTensor]] = {}
        for file, names in self._files().items():
            found = _header(file)
            for name in found if names is None else names:
                if name not in found:
                    raise UserError(f"{file} has no tensor '{name}', which {INDEX} says it has")
                self.tensors[name] = found[name]
            headers[file] = found
        for file, found in headers.items():
            for name in found:
                if name not in self.tensors:
                    raise UserError(f"{file}: tensor '{name}' is not in {INDEX}")
        self._open: tuple[Path, int] | None = None

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a folder looks like a Hugging Face checkpoint."""
        return (path / "config.json").is_file()

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`, with transformers' defaults where it knows the model type."""
        return normalised(read_json(self.path / "config.json"), self.path / "config.json")

    @property
    def main_file(self) -> Path:
        """The file that says which tensors there are."""
        index = self.path / INDEX
        return index if index.is_file() else self.path / SINGLE

    def _files(self) -> Mapping[Path, list[str] | None]:
        """The files and what they hold; None: all that is in it."""
        index = self.path / INDEX
        if index.is_file():
            shards: dict[Path, list[str]] = {}
            for name, file in _weight_map(index).items():
                shards.setdefault(self.path / file, []).append(name)
            return shards
        if (self.path / SINGLE).is_file():
            return {self.path / SINGLE: None}
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in self.path.glob(pattern))
        if pickles:
            raise UserError(
                f"{self.path / pickles[0]} is a pickle, which can run any code when it is loaded; only safetensors are "
                "read. Convert it where you trust it: load it with transformers and save_pretrained"
            )
        raise UserError(f"{self.path} holds no {SINGLE} and no {INDEX}; only safetensors are read")

    def read(self, name: str, *, axis: int = 0, part: int = 0, parts: int = 1) -> torch.Tensor:
        """A tensor, or one of equal parts of it.

        Args:
            name: A name in `tensors`.
            axis: That is divided.
            part: Which part, counted from 0.
            parts: How many.
        """
        size = self.tensors[name].shape[axis] // parts if parts > 1 else 0
        return self.read_range(name, axis, part * size, size) if parts > 1 else self.read_range(name, 0, 0, None)

    def read_range(self, name: str, axis: int, first: int, count: int | None) -> torch.Tensor:
        """`count` entries along an axis from `first` on; None: the whole tensor."""
        stored = self.tensors[name]
        handle, dtype, shape = self._handle(stored.file), STORED[stored.dtype], stored.shape
        if count is None or not shape:
            return _read(handle, stored.start, math.prod(shape), dtype).view(shape)
        inner = math.prod(shape[axis + 1 :])
        width, outer = shape[axis] * inner, math.prod(shape[:axis])
        result = torch.empty(outer, count * inner, dtype=dtype)
        rows = 1 if outer == 1 else max(1, _BLOCK // max(1, width * dtype.itemsize))
        for row in range(0, outer, rows):
            last = min(outer, row + rows)
            if outer == 1:  # only what is wanted is read
                start = stored.start + first * inner * dtype.itemsize
                result[0] = _read(handle, start, count * inner, dtype)
                continue
            block = _read(handle, stored.start + row * width * dtype.itemsize, (last - row) * width, dtype)
            result[row:last] = block.view(-1, width)[:, first * inner : (first + count) * inner]
        return result.view(*shape[:axis], count, *shape[axis + 1 :])

    def _handle(self, file: Path) -> int:
        if self._open is None or self._open[0] != file:
            self.close()
            self._open = file, os.open(file, os.O_RDONLY)
        return self._open[1]

    def close(self) -> None:
        """Closes the file that is open."""
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def _weight_map(index: Path) -> dict[str, str]:
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise UserError(f"{index} has no 'weight_map' of tensor names to file names")
    return found


def _read(handle: int, start: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` numbers from byte `start` on."""
    result = torch.empty(count, dtype=dtype)
    buffer = memoryview(result.view(torch.uint8).numpy().data)
    done = 0
    while done < len(buffer):
        got = os.preadv(handle, [buffer[done:]], start + done)
        if got == 0:
            raise UserError("a safetensors file has become shorter while it was read")
        done += got
    return result


def _header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file (https://github.com/huggingface/safetensors, section Format).

    Raises:
        UserError: the file is missing, no safetensors, or torn: its bytes do not cover its tensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise UserError(f"{file} is no whole safetensors file: its header does not fit into its {size} bytes")
            header = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {file}: {error}") from error
    try:
        header.pop("__metadata__", None)
        return _entries(file, header, 8 + length, size)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file} is no whole safetensors file: its header says {error!r}") from error


def _entries(file: Path, header: dict[str, Any], begin: int, size: int) -> dict[str, StoredTensor]:
    """What a header says, checked against the file's size; `begin` is the first byte after it."""
    found, last, covered = {}, "", 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = entry["data_offsets"]
        if first != covered:
            raise UserError(f"{file}: tensor '{name}' begins at byte {first} of the data; '{last}' ends at {covered}")
        last, covered = name, end
        if begin + end > size:
            raise UserError(f"{file} is torn: tensor '{name}' ends at byte {begin + end}, the file at {size}")
        found[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), begin + first)
        if entry["dtype"] in STORED and found[name].nbytes != end - first:
            raise UserError(f"{file}: tensor '{name}' of shape {entry['shape']} has {end - first} bytes")
    if begin + covered != size:
        raise UserError(f"{file} has {size - begin - covered} bytes that no tensor has")
    return found


def normalised(hf: dict[str, Any], where: object) -> dict[str, Any]:
    """A `config.json` with transformers' defaults and in the spelling of its current version; nested ones too.

    Raises:
        UserError: transformers does not accept it.
    """
    from transformers import CONFIG_MAPPING

    kind = str(hf.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return hf
    try:
        known: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(hf).to_dict()
    except Exception as error:  # transformers raises many kinds for values that it does not understand
        raise UserError(f"{where}: transformers does not accept it: {error}") from error
    return {**hf, **known}
