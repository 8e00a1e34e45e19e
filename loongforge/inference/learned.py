"""What a component has learned beside its base model: adapters, and modules that were trained whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from loongforge.checkpoint.hf_export import Weights, full_weight
from loongforge.components.base import FamilyConfig
from loongforge.components.hf import NameMap
from loongforge.components.lora import is_adapter, to_peft
from loongforge.components.trainable import trains
from loongforge.config.errors import UserError

_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Learned:
    """By the names of transformers' modules in memory."""

    tensors: dict[str, torch.Tensor]
    """As peft names them, without its prefix."""
    adapted: list[str]
    """Modules with an adapter."""
    whole: list[str]
    """Modules that are taken along as they are."""


def learned_of(
    name: str,
    part: FamilyConfig,
    names: NameMap,
    weights: Weights,
    modules: Collection[str],
    described: Mapping[str, Any],
) -> Learned:
    """What one component has learned.

    Args:
        name: `vision`, `projector` or `llm`.
        part: Its config.
        names: Its tensors' names in the whole model.
        weights: Its tensors.
        modules: Names of the modules of transformers' model.
        described: `config.json` of the whole model.

    Raises:
        UserError: a parameter that trained and that peft cannot take along.
    """
    stored = weights.shapes()
    owners = {key: _owners(key, names, modules) for key in stored if not is_adapter(key)}
    whole = {module for key, found in owners.items() if trains(key, part) for module in found}
    loose = [key for key, found in owners.items() if trains(key, part) and set(found) & {"", "model"}]
    if loose:
        raise UserError(
            f"--adapter: model.{name} trained '{loose[0]}', a parameter of no module, which peft cannot take along; "
            f"without --adapter the export holds the whole model (a run with model.{name}.train=['!{loose[0]}'] keeps "
            "it as it is)"
        )
    adapters: dict[str, torch.Tensor] = {}
    if part.lora is not None:
        full = {key: weights.read(key) for key in stored if is_adapter(key)}
        adapters = to_peft(
            full, part.lora, names, lambda spellings: next(name for name in spellings if name in modules)
        )
    adapted = {key.removesuffix(".lora_A.weight") for key in adapters if key.endswith(".lora_A.weight")}
    whole |= {module for module in adapted if _mistaken(module, described)}
    whole = {module for module in whole if not _inside(module, whole - {module})}
    kept = {key: value for key, value in adapters.items() if not _inside(key, whole)}
    tensors = dict(_whole(part, names, weights, owners, whole))
    for alias, original in _tied(names, modules).items():
        if original in tensors:
            tensors[alias] = tensors[original].clone()
            whole.add(alias.rpartition(".")[0])
    return Learned(
        {**kept, **tensors}, sorted(module for module in adapted if not _inside(module, whole)), sorted(whole)
    )


def _tied(names: NameMap, modules: Collection[str]) -> dict[str, str]:
    """Parameters in memory that are copies of others: peft unties what it takes along."""

    def known(bare: str) -> str:
        rule = next(rule for rule in names.rules if bare in rule.theirs)
        spelled = names.spellings(bare, rule)
        return next(name for name in spelled if name.rpartition(".")[0] in modules)

    return {known(alias): known(original) for alias, original in names.tied.items()}


def _mistaken(module: str, described: Mapping[str, Any]) -> bool:
    """Dense layers among experts: peft takes adapters of these names for the experts' (`_convert_peft_config_moe`)."""
    return "num_experts" in described and module.endswith(_OF_EXPERTS)


def _inside(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _owners(key: str, names: NameMap, modules: Collection[str]) -> list[str]:
    """The modules whose parameters a tensor of ours stands for; an empty name: of none (experts are stacked)."""
    found = ([name.rpartition(".")[0] for name in spellings] for spellings in names.sources(key))
    return [next((name for name in spelled if name in modules), "") for spelled in found]


def _whole(
    part: FamilyConfig, names: NameMap, weights: Weights, owners: Mapping[str, list[str]], whole: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters of some modules, with what adapters add to them."""
    stored = weights.shapes()
    for key, found in owners.items():
        if not any(_inside(module, whole) for module in found):
            continue
        rule, _ = names.find(key)
        pieces = rule.split(full_weight(part, weights, key, stored))
        for module, spellings, piece in zip(found, names.sources(key), pieces, strict=True):
            if _inside(module, whole):
                yield f"{module}.{spellings[0].rpartition('.')[2]}", piece
