"""What a component has learned beside its base model: adapters, and modules that were trained whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from loongforge.checkpoint.hf_export import Weights, full_weight
from loongforge.components.base import FamilyConfig
from loongforge.components.hf import NameMap
from loongforge.components.llm.base import LLMConfig
from loongforge.components.lora import is_adapter, to_peft
from loongforge.components.trainable import trains
from loongforge.config.errors import UserError
from loongforge.inference.fused_experts import fuse

Ranks = dict[str, tuple[int, float]]
"""Rank and alpha by name."""
_OF_EXPERTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Learned:
    """By the names of transformers' modules in memory."""

    tensors: dict[str, torch.Tensor]
    """As peft names them, without its prefix."""
    adapted: Ranks
    """Modules with an adapter."""
    parameters: Ranks
    """Parameters with an adapter of their own: stacked experts, and dense layers beside them."""
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
    trained = {key: found for key, found in owners.items() if trains(key, part)}
    loose = [key for key, found in trained.items() if set(found) & {"", "model"}]
    if loose:
        raise UserError(
            f"--adapter: model.{name} trained '{loose[0]}', a parameter of no module, which peft cannot take along; "
            f"without --adapter the export holds the whole model (a run with model.{name}.train=['!{loose[0]}'] keeps "
            "it as it is)"
        )
    everything = {module for found in trained.values() for module in found}
    whole = {module for module in everything if not _inside(module, everything - {module})}
    adapters, adapted, parameters = _adapters(part, names, weights, modules, described)
    kept = {key: value for key, value in adapters.items() if not _inside(key, whole)}
    tensors = dict(_whole(part, names, weights, owners, whole))
    for alias, original in _tied(names, modules).items():
        if original in tensors:
            tensors[alias] = tensors[original].clone()
            whole.add(alias.rpartition(".")[0])
    adapted, parameters = (
        {key: ranks for key, ranks in found.items() if not _inside(key, whole)} for found in (adapted, parameters)
    )
    return Learned({**kept, **tensors}, adapted, parameters, sorted(whole))


def _adapters(
    part: FamilyConfig, names: NameMap, weights: Weights, modules: Collection[str], described: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], Ranks, Ranks]:
    """Tensors of a component's adapters, and the modules and parameters that they adapt."""
    if part.lora is None:
        return {}, {}, {}

    def spell(spellings: list[str]) -> str:
        return next(name for name in spellings if name in modules or _stack_of(name) in modules)

    full = {key: weights.read(key) for key in weights.shapes() if is_adapter(key)}
    routers = part.routers if isinstance(part, LLMConfig) else None
    fused = fuse(to_peft(full, part.lora, names, spell), part.lora, routers.experts if routers else 0)
    stacks = {name.rpartition(".")[0] for name in fused.parameters}
    found: dict[bool, Ranks] = {True: dict(fused.parameters), False: {}}
    for key in fused.tensors:
        module, is_a, _ = key.partition(".lora_A.")
        if is_a and module.removesuffix(".base_layer") not in stacks:
            mistaken = _mistaken(module, described)
            found[mistaken][f"{module}.weight" if mistaken else module] = part.lora.rank, part.lora.alpha
    return fused.tensors, found[False], found[True]


def _stack_of(name: str) -> str:
    """The module that holds a layer of an expert in memory."""
    module, experts, _ = name.partition(".experts.")
    return module + experts.rstrip(".")


def _tied(names: NameMap, modules: Collection[str]) -> dict[str, str]:
    """Parameters in memory that are copies of others: peft unties what it takes along."""

    def known(bare: str) -> str:
        rule = next(rule for rule in names.rules if bare in rule.theirs)
        spelled = names.spellings(bare, rule)
        return next(name for name in spelled if name.rpartition(".")[0] in modules)

    return {known(alias): known(original) for alias, original in names.tied.items()}


def _mistaken(module: str, described: Mapping[str, Any]) -> bool:
    """Dense layers among experts: peft takes adapters of these names for the experts' (`_convert_peft_config_moe`), but
    not where they are named by their weight."""
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
