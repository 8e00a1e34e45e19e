"""What an export writes: every tensor's name, shape and type, known before the first one is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from loongforge.checkpoint.hf_folder import STORED
from loongforge.checkpoint.hf_origin import PartOrigin
from loongforge.checkpoint.hf_source import HFSource
from loongforge.checkpoint.hf_write import Entry
from loongforge.checkpoint.tensor_table import StoredTensors
from loongforge.components.base import FamilyConfig
from loongforge.components.hf import NameMap
from loongforge.components.lora import is_adapter, merged


class Weights(Protocol):
    """One component's full tensors by global name, read one at a time."""

    def shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each."""

    def read(self, name: str) -> torch.Tensor:
        """One of them."""


_BY_TOKEN = ("embedding.word_embeddings.weight", "output_layer.weight")


@dataclass(frozen=True)
class CheckpointWeights:
    """Of a loongforge checkpoint."""

    stored: StoredTensors
    component: str
    vocabulary: int | None = None
    """Rows that tensors with a row for each token really have: tensor-parallel ranks stored padding behind them."""

    def _rows(self, name: str, rows: int) -> int:
        return min(rows, self.vocabulary) if self.vocabulary and name in _BY_TOKEN else rows

    def _shape(self, name: str) -> tuple[int, ...]:
        rows, *others = self.stored.shape(f"{self.component}.{name}")
        return (self._rows(name, rows), *others)

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of each."""
        prefix = f"{self.component}."
        return {name: (self._shape(name), self.stored.dtype(prefix + name)) for name in self.stored.names(prefix)}

    def read(self, name: str) -> torch.Tensor:
        """One of them."""
        tensor = self.stored.read(f"{self.component}.{name}")
        return tensor[: self._rows(name, len(tensor))]


@dataclass(frozen=True)
class FolderWeights:
    """Of a Hugging Face folder, joined as an import does it."""

    source: HFSource
    known: Mapping[str, tuple[int, ...]]
    """Our names and shapes."""

    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape of each, with the type of its first piece."""
        return {name: (shape, self.source.dtype(name)) for name, shape in self.known.items()}

    def read(self, name: str) -> torch.Tensor:
        """One of them."""
        return self.source.full(name, self.known[name])


@dataclass
class _Work:
    """What one tensor of ours becomes."""

    name: str
    entries: list[tuple[int, Entry]] = field(default_factory=list)
    """Number of the piece, and how it is written."""


class PartExport:
    """One component.

    Args:
        component: Its config.
        weights: Its tensors.
        names: Their names in the whole.
        origin: Of its weights; None: they were never Hugging Face's.
        dtype: Of everything; None: as in the origin, else as stored.
    """

    def __init__(
        self,
        component: FamilyConfig,
        weights: Weights,
        names: NameMap,
        origin: PartOrigin | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.component, self.weights, self.names, self.dtype = component, weights, names, dtype
        self.origin = origin or PartOrigin({})
        self._shapes = weights.shapes()
        self._work = [self._plan(name) for name in self._shapes if not is_adapter(name)]
        self._aside = list(self._kept())

    def _written(self, bare: str, spellings: list[str], shape: tuple[int, ...], stored: torch.dtype) -> Entry:
        name, spelled = self.origin.tensors.get(bare, (spellings[0], ""))
        own = STORED.get(spelled, stored)
        dtype = (self.dtype or own) if own.is_floating_point else own
        same = self.origin.is_whole and name in spellings
        return Entry(name if same else spellings[0], tuple(shape), dtype)

    def _plan(self, name: str) -> _Work:
        shape, dtype = self._shapes[name]
        rule, _ = self.names.find(name)
        work = _Work(name)
        bare_names = self.names.bare_names(name)
        pieces = rule.split(torch.empty(shape, device="meta"))
        for number, (bare, piece) in enumerate(zip(bare_names, pieces, strict=True)):
            entry = self._written(bare, self.names.spellings(bare, rule), piece.shape, dtype)
            work.entries.append((number, entry))
            for copy in self._copies(bare):
                work.entries.append((number, Entry(copy, entry.shape, entry.dtype)))
        return work

    def _copies(self, bare: str) -> list[str]:
        """Names under which the origin held a tied tensor once more."""
        found = []
        for recorded, original in self.origin.copies.items():
            for alias in [alias for alias, of in self.names.tied.items() if of == bare == original]:
                rule = next((rule for rule in self.names.rules if alias in rule.theirs), None)
                spellings = self.names.spellings(alias, rule)
                found.append(recorded if self.origin.is_whole and recorded in spellings else spellings[0])
        return found

    def _kept(self) -> Iterator[tuple[Entry, str]]:
        """Tensors that are not built here: those of the origin, else neutral ones."""
        carried = self.origin.carried.tensors if self.origin.carried is not None else {}
        for bare, stored in carried.items():
            yield self._written(bare, self.names.spellings(bare), stored.shape, STORED[stored.dtype]), bare
        known = next(iter(self._shapes.values()))[1]
        for bare, shape in self.names.neutral.items():
            if bare not in carried:
                yield self._written(bare, self.names.spellings(bare), shape, known), bare

    def entries(self) -> list[Entry]:
        """All that is written, in order."""
        return [entry for work in self._work for _, entry in work.entries] + [entry for entry, _ in self._aside]

    def tensors(self) -> Iterator[torch.Tensor]:
        """The same tensors, each read when it is asked for."""
        for work in self._work:
            rule, _ = self.names.find(work.name)
            pieces = rule.split(full_weight(self.component, self.weights, work.name, self._shapes))
            for number, _ in work.entries:
                yield pieces[number]
        for entry, bare in self._aside:
            if self.origin.carried is not None and bare in self.origin.carried.tensors:
                yield self.origin.carried.read(bare)
            else:
                yield (torch.ones if bare.endswith("weight") else torch.zeros)(entry.shape)


def full_weight(component: FamilyConfig, weights: Weights, name: str, known: Collection[str]) -> torch.Tensor:
    """A tensor of ours by global name, with its adapter's part if that is among the `known` names."""
    adapters = [name.removesuffix("weight") + f"lora.{part}" for part in "ab"]
    if component.lora is None or adapters[0] not in known:
        return weights.read(name)
    full = {own: weights.read(own) for own in (name, *adapters)}
    return merged(full, component.lora, component.name_map())[name]


def export_config(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`config.json`: what the run's origin said, the rest from the recipe.

    Args:
        ours: From the family's `to_hf`.
        theirs: The origin's; settings were compared with the recipe when it was imported.
    """
    found = dict(ours)
    for key, value in (theirs or {}).items():
        known = ours.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            found[key] = export_config(known, value)
        elif key not in _FOLLOWS or ours.get(key) is None:
            found[key] = value
    return found


_FOLLOWS = ("vocab_size", "image_token_index", "image_token_id", "router_aux_loss_coef", "output_router_logits")
"""What a run decides: by its tokenizer, or by what it trained with."""


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` that says one type everywhere."""
    found = {key: with_dtype(value, dtype) if isinstance(value, dict) else value for key, value in config.items()}
    if {"dtype", "torch_dtype"} & set(found) or "architectures" in found:
        found.pop("torch_dtype", None)
        found["dtype"] = str(dtype).removeprefix("torch.")
    return found
