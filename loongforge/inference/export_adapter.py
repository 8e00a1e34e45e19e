"""`loongforge export --adapter`: what a run has learned beside its base model, as a folder that peft loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loongforge.checkpoint.hf_export import Weights
from loongforge.checkpoint.hf_origin import FOLDER, read_origin
from loongforge.checkpoint.lifecycle import resolve
from loongforge.components.base import FamilyConfig
from loongforge.components.hf import NameMap
from loongforge.components.llm.base import LLMConfig
from loongforge.components.lora import is_adapter, to_peft
from loongforge.config.errors import UserError
from loongforge.config.schema import Config, LoraConfig
from loongforge.inference.export import checkpoint_weights, plan_export
from loongforge.inference.fused_experts import FusedAdapters, fuse
from loongforge.model.assembly import component_configs

_PREFIX = "base_model.model."
_LIKE_EXPERTS = (".gate_proj", ".up_proj", ".down_proj")

_Ranks = dict[str, tuple[int, float]]
"""Rank and alpha by name."""


def export_adapter(config: Config, tree: dict[str, Any], *, checkpoint: str, out: str) -> int:
    """Writes `adapter_config.json` and `adapter_model.safetensors`. The work of one process.

    Adapters come as LoRA; a projector that was trained whole comes along as one of peft's `modules_to_save`.

    Args:
        config: The recipe of the checkpoint.
        tree: The same as plain values.
        checkpoint: A run or a checkpoint.
        out: Does not exist yet.

    Returns:
        Exit code.

    Raises:
        UserError: the model has no adapters, or trained something whole that peft cannot take along.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {target} exists and is not empty; name a new folder, or remove it")
    _check(config)
    path = resolve(Path(checkpoint)).path
    weights = checkpoint_weights(config, path)
    plan = plan_export(config, weights, read_origin(path / FOLDER), path / "tokenizer", dtype=None)
    modules = _modules(plan.config)
    learned = {
        name: _component(part, plan.family.name_map(name, part), weights[name], _speller(modules))
        for name, part in component_configs(config).items()
        if part.trains and isinstance(part, FamilyConfig)
    }
    aside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = {_PREFIX + key: own.contiguous() for found in learned.values() for key, own in found.tensors.items()}
    save_file(tensors, aside / "adapter_model.safetensors")
    (aside / "adapter_config.json").write_text(json.dumps(_described(config, learned, modules), indent=2))
    if target.is_dir():
        target.rmdir()
    aside.rename(target)
    print(f"{target}: {len(tensors)} tensors; peft.PeftModel.from_pretrained(base model, {str(target)!r}) loads it")
    return 0


def _check(config: Config) -> None:
    parts = component_configs(config)
    if not any(part.lora is not None for part in parts.values()):
        raise UserError("--adapter: no component of this run has adapters (model.COMPONENT.lora); leave --adapter out")
    whole = [name for name, part in parts.items() if part.trains and part.lora is None and name != "projector"]
    if whole:
        raise UserError(
            f"--adapter: model.{whole[0]} was trained whole, which is no adapter; without --adapter the export holds "
            "the whole model, adapters merged"
        )


def _modules(described: dict[str, Any]) -> set[str]:
    """Names of the modules of transformers' model, made without weights."""
    import transformers

    with tempfile.TemporaryDirectory(prefix="loongforge-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(described))
        config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = getattr(transformers, described["architectures"][0])(config)
    return {name for name, _ in model.named_modules()}


def _speller(modules: Collection[str]) -> Callable[[list[str]], str]:
    def spell(spellings: list[str]) -> str:
        found = [name for name in spellings if name in modules or _stack_of(name) in modules]
        assert found, f"transformers' model has none of {spellings}"
        return found[0]

    return spell


def _stack_of(name: str) -> str:
    """The module that would hold a layer of an expert in memory."""
    module, found, _ = name.partition(".experts.")
    return module + found.rstrip(".")


def _component(
    part: FamilyConfig, names: NameMap, weights: Weights, spell: Callable[[list[str]], str]
) -> FusedAdapters:
    """What a component has learned, by the names of transformers' modules in memory."""
    if part.lora is not None:
        full = {key: weights.read(key) for key in weights.shapes() if is_adapter(key)}
        routers = part.routers if isinstance(part, LLMConfig) else None
        return fuse(to_peft(full, part.lora, names, spell), part.lora, routers.experts if routers else 0)
    found = {}
    for key in weights.shapes():
        rule, _ = names.find(key)
        for spellings, piece in zip(names.sources(key), rule.split(weights.read(key)), strict=True):
            kind = spellings[0].rpartition(".")[2]
            found[f"{spell([name.rpartition('.')[0] for name in spellings])}.{kind}"] = piece
    return FusedAdapters(found)


def _targets(settings: LoraConfig, found: FusedAdapters, modules: Collection[str]) -> tuple[_Ranks, _Ranks]:
    """Rank and alpha of what a component adapts: modules, and parameters."""
    stacks = {name.rpartition(".")[0] for name in found.parameters}
    layers: _Ranks = {}
    parameters: _Ranks = dict(found.parameters)
    has_experts = any(name.endswith(".experts") for name in modules)
    for key in found.tensors:
        layer, is_a, _ = key.partition(".lora_A")
        if not is_a or layer.removesuffix(".base_layer") in stacks:
            continue
        # beside experts peft takes dense layers of these names for experts as transformers 4 had them
        beside = has_experts and layer.endswith(_LIKE_EXPERTS)
        (parameters if beside else layers)[f"{layer}.weight" if beside else layer] = settings.rank, settings.alpha
    return layers, parameters


def _described(config: Config, learned: dict[str, FusedAdapters], modules: Collection[str]) -> dict[str, Any]:
    """`adapter_config.json`."""
    parts = component_configs(config)
    layers: _Ranks = {}
    parameters: _Ranks = {}
    saved: list[str] = []
    dropout = 0.0
    for name, found in learned.items():
        settings = parts[name].lora
        if settings is None:
            saved += sorted({key.removesuffix(".weight").removesuffix(".bias") for key in found.tensors})
            continue
        own_layers, own_parameters = _targets(settings, found, modules)
        layers, parameters = layers | own_layers, parameters | own_parameters
        dropout = max(dropout, settings.dropout)
    everything = layers | parameters
    usual = Counter(everything.values()).most_common(1)[0][0]
    origins = [config.model.init_from, *(part.init_from for part in parts.values())]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": next((origin for origin in origins if origin is not None), None),
        "r": usual[0],
        "lora_alpha": usual[1],
        "lora_dropout": 0.0 if parameters else dropout,  # peft drops nothing where it adapts parameters
        "rank_pattern": {name: rank for name, (rank, _) in everything.items() if rank != usual[0]},
        "alpha_pattern": {name: alpha for name, (_, alpha) in everything.items() if alpha != usual[1]},
        "target_modules": sorted(layers),
        "target_parameters": sorted(parameters) or None,
        "modules_to_save": saved or None,
        "bias": "none",
        "inference_mode": True,
    }
