"""Reading weights from a folder in Hugging Face format (safetensors only: nothing is unpickled)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from loongforge.config.errors import UserError, did_you_mean

_LAYER = re.compile(r".*\blayers\.\d+\.")
_BUFFERS = ("inv_freq", "position_ids")  # older transformers saved these too; they follow from the config


class HFFolder:
    """The tensors of a folder, read one by one when they are asked for.

    Args:
        path: Folder with `config.json` and `model.safetensors`, or its shards and their index.

    Raises:
        UserError: no such folder, no safetensors in it, or a shard that is missing or torn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[str, safe_open] = {}
        self._taken: set[str] = set()
        self.files = self._files()

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a folder looks like a Hugging Face checkpoint."""
        return (path / "config.json").is_file()

    def _files(self) -> dict[str, str]:
        """Tensor name -> file name."""
        index = self.path / "model.safetensors.index.json"
        if index.is_file():
            return json.loads(index.read_text())["weight_map"]
        single = "model.safetensors"
        if not (self.path / single).is_file():
            raise UserError(
                f"{self.path} holds no {single} and no index of shards; only safetensors checkpoints are read"
            )
        return {name: single for name in self._handle(single).keys()}  # noqa: SIM118

    def _handle(self, file: str) -> safe_open:
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.path / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"cannot read {self.path / file}: {error}") from error
        return self._open[file]

    def get(self, candidates: list[str]) -> torch.Tensor:
        """The first tensor that exists under one of the names.

        Raises:
            UserError: none does.
        """
        for name in candidates:
            if name in self.files:
                self._taken.add(name)
                return self._handle(self.files[name]).get_tensor(name)
        raise UserError(
            f"{self.path} has no tensor '{candidates[0]}' (looked for: {', '.join(candidates)})."
            + did_you_mean(candidates[0], self.files)
        )

    def require_whole_layers(self) -> None:
        """Checks that no layer was read in part: what is left would be missing from the model without a word.

        Raises:
            UserError: naming some of what is left (biases of a recipe without `qkv_bias`, for one).
        """
        layers = {found.group() for name in self._taken if (found := _LAYER.match(name))}
        left = [name for name in sorted(self.files) if name not in self._taken and not name.endswith(_BUFFERS)]
        left = [name for name in left if (found := _LAYER.match(name)) and found.group() in layers]
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise UserError(f"{self.path} holds {', '.join(left[:3])}{more}, for which the recipe has no parameter")


def full_tensors(
    folder: HFFolder, name_map: Callable[[str, Callable[[list[str]], torch.Tensor]], torch.Tensor]
) -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """A source of full tensors for `components.sharding.fill_parameters`.

    Args:
        folder: Where to read.
        name_map: A component's `NameMap.full_tensor`.
    """

    def full_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = name_map(name, folder.get)
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{folder.path}: parameter {name} has shape {list(tensor.shape)} there, but {list(shape)} in the recipe"
            )
        return tensor

    return full_tensor
