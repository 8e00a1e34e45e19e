"""`loongforge export --adapter`: what a run has learned beside its base model, as a folder that peft loads."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from loongforge.checkpoint.hf_origin import FOLDER, read_origin
from loongforge.checkpoint.lifecycle import resolve
from loongforge.components.base import FamilyConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.inference.export import checkpoint_weights, plan_export
from loongforge.inference.learned import Learned, learned_of
from loongforge.model.assembly import component_configs

_PREFIX = "base_model.model."


def export_adapter(config: Config, tree: dict[str, Any], *, checkpoint: str, out: str) -> int:
    """Writes `adapter_config.json` and `adapter_model.safetensors`. The work of one process.

    Adapters come as LoRA; what was trained whole beside them (a projector, `model.COMPONENT.train`) comes along in
    peft's `modules_to_save`.

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
    count = write_adapter(config, resolve(Path(checkpoint)).path, target)
    print(f"{target}: {count} tensors; peft.PeftModel.from_pretrained(base model, {str(target)!r}) loads it")
    return 0


def write_adapter(config: Config, path: Path, target: Path) -> int:
    """Writes what a checkpoint has learned beside its base model; returns the number of tensors.

    Raises:
        UserError: as `export_adapter`, or the target exists; nothing is written then.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {target} exists and is not empty; name a new folder, or remove it")
    _check(config)
    weights = checkpoint_weights(config, path)
    plan = plan_export(config, weights, read_origin(path / FOLDER), path / "tokenizer", dtype=None)
    modules = _modules(plan.config)
    learned = {
        name: learned_of(name, part, plan.family.name_map(name, part), weights[name], modules, plan.config)
        for name, part in component_configs(config).items()
        if part.trains and isinstance(part, FamilyConfig)
    }
    aside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = {_PREFIX + key: value.contiguous() for found in learned.values() for key, value in found.tensors.items()}
    save_file(tensors, aside / "adapter_model.safetensors")
    (aside / "adapter_config.json").write_text(json.dumps(_described(config, learned), indent=2))
    if target.is_dir():
        target.rmdir()
    aside.rename(target)
    return len(tensors)


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


def _described(config: Config, learned: dict[str, Learned]) -> dict[str, Any]:
    """`adapter_config.json`."""
    parts = component_configs(config)
    modules = {key: own for found in learned.values() for key, own in found.adapted.items()}
    parameters = {key: own for found in learned.values() for key, own in found.parameters.items()}
    everything = modules | parameters
    dropout = max(part.lora.dropout for part in parts.values() if part.lora is not None)
    saved = sorted(module for found in learned.values() for module in found.whole)
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
        "target_modules": sorted(modules),
        "target_parameters": sorted(parameters) or None,
        "modules_to_save": saved or None,
        "bias": "none",
        "inference_mode": True,
    }
