"""`loongforge export`: a folder that transformers loads, from a run, a checkpoint, or a Hugging Face folder."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loongforge.checkpoint.families.base import ExportFacts, Family
from loongforge.checkpoint.families.registry import families, family_for
from loongforge.checkpoint.hf_export import (
    CheckpointWeights,
    FolderWeights,
    PartExport,
    Weights,
    export_config,
    with_dtype,
)
from loongforge.checkpoint.hf_files import TOKENIZER_FILES
from loongforge.checkpoint.hf_folder import HFFolder
from loongforge.checkpoint.hf_import import import_whole
from loongforge.checkpoint.hf_origin import FOLDER, Origin, read_origin, write_origin
from loongforge.checkpoint.hf_write import parse_size, write_safetensors
from loongforge.checkpoint.json_file import read_json
from loongforge.checkpoint.lifecycle import resolve
from loongforge.checkpoint.tensor_table import StoredTensors
from loongforge.components.base import FamilyConfig
from loongforge.components.llm.base import LLMConfig
from loongforge.components.sharding import shards
from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, Config, ModelConfig
from loongforge.data.tokenizer import load_tokenizer
from loongforge.kernels.backend import select
from loongforge.model.assembly import build_model, component_configs
from loongforge.model.checks import require_sizes
from loongforge.model.flops import image_tokens
from loongforge.model.hf_weights import check_hf_weights
from loongforge.parallel.groups import make_groups
from loongforge.parallel.layout import Layout
from loongforge.parallel.session import joined_world

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def export(config: Config, tree: dict[str, Any], *, checkpoint: str, out: str, dtype: str, max_shard_size: str) -> int:
    """Writes a Hugging Face folder. The work of one process, whatever layout wrote the checkpoint.

    Args:
        config: The recipe of the checkpoint.
        tree: The same as plain values.
        checkpoint: A run, a checkpoint, or a Hugging Face folder.
        out: Does not exist yet.
        dtype: `auto`: of each tensor where it came from, else as it was trained; or fp32, bf16, fp16.
        max_shard_size: Of a file, like 5GB.

    Returns:
        Exit code.
    """
    path, target = Path(checkpoint), Path(out)
    chosen, size = DTYPES.get(dtype), parse_size(max_shard_size)
    if HFFolder.is_one(path):
        with _folder_weights(config, path) as (weights, origin):
            files = write_export(config, weights, origin, path, target, dtype=chosen, max_bytes=size)
    else:
        files = export_checkpoint(config, resolve(path).path, target, dtype=chosen, max_bytes=size)
    total = sum(file.stat().st_size for file in files)
    print(f"{target}: {len(files)} safetensors file{'s' if len(files) > 1 else ''}, {total / 1e6:.1f} MB")
    return 0


def export_checkpoint(
    config: Config, path: Path, target: Path, *, dtype: torch.dtype | None = None, max_bytes: int = 5 * 10**9
) -> list[Path]:
    """Writes the weights of a checkpoint as a Hugging Face folder; returns its safetensors files."""
    weights, origin = checkpoint_weights(config, path), read_origin(path / FOLDER)
    return write_export(config, weights, origin, path / "tokenizer", target, dtype=dtype, max_bytes=max_bytes)


@contextmanager
def _folder_weights(config: Config, path: Path) -> Iterator[tuple[dict[str, Weights], Origin]]:
    """Of a Hugging Face folder, after the checks of an import."""
    backend = select(config.backend)
    with joined_world(backend), tempfile.TemporaryDirectory(prefix="loongforge-") as aside:
        layout = Layout.from_model(config.model, 1)
        require_sizes(config.model, layout)
        groups = make_groups(layout, backend.dist_backend, seed=config.trainer.seed)
        model = build_model(config, groups, image_token=0 if config.model.vision is not None else None)
        wanted = import_whole(config.model, path)
        findings = check_hf_weights(model, wanted)
        write_origin(Path(aside), [(wanted, findings)])
        weights: dict[str, Weights] = {
            name: FolderWeights(
                wanted.sources[name], {shard.name: shard.shape for shard in shards(part, part.tp_group)}
            )
            for name, part in model.components().items()
        }
        yield weights, read_origin(Path(aside))


@dataclass(frozen=True)
class ExportPlan:
    """What an export holds, before anything is written."""

    family: Family
    config: dict[str, Any]
    """`config.json`."""
    parts: list[PartExport]
    files: dict[str, Any]
    """More JSON files by name."""
    tokenizer: Any
    adjust: Callable[[str, dict[str, Any]], dict[str, Any]]
    """A JSON file that came with the origin, by name and content, as the recipe has changed it."""


def plan_export(
    config: Config, weights: dict[str, Weights], origin: Origin, tokenizer_dir: Path, *, dtype: torch.dtype | None
) -> ExportPlan:
    """Finds the family, and what its `config.json` says.

    Raises:
        UserError: no family of transformers has such a model.
    """
    model = _exportable(config.model, origin)
    family = _family(model, origin)
    tokenizer = load_tokenizer(tokenizer_dir) if any((tokenizer_dir / f).is_file() for f in TOKENIZER_FILES) else None
    facts = ExportFacts(
        tokenizer=tokenizer,
        image_token=config.data.image_token,
        num_image_tokens=image_tokens(config.model),
        max_tiles=config.data.max_tiles,
        thumbnail=config.data.thumbnail,
    )
    parts = [_part(family, name, model, weights[name], origin, dtype) for name in component_configs(config)]
    described = _config(family, model, facts, origin, parts, dtype)

    def adjust(name: str, theirs: dict[str, Any]) -> dict[str, Any]:
        return family.adjusted(name, theirs, model, facts)

    return ExportPlan(family, described, parts, family.files(model, facts), tokenizer, adjust)


def checkpoint_weights(config: Config, path: Path) -> dict[str, Weights]:
    """Of a loongforge checkpoint, by component."""
    stored = StoredTensors(path)
    llm = config.model.llm
    assert isinstance(llm, LLMConfig)
    vocabulary = {"llm": llm.vocab_size}
    return {name: CheckpointWeights(stored, name, vocabulary.get(name)) for name in component_configs(config)}


def write_export(
    config: Config,
    weights: dict[str, Weights],
    origin: Origin,
    tokenizer_dir: Path,
    target: Path,
    *,
    dtype: torch.dtype | None,
    max_bytes: int,
) -> list[Path]:
    """Writes everything beside the target and renames it last, so that a torn export never looks whole.

    Raises:
        UserError: the target exists, or no family of transformers has such a model; nothing is written then.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--out {target} exists and is not empty; name a new folder, or remove it")
    plan = plan_export(config, weights, origin, tokenizer_dir, dtype=dtype)
    aside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        entries = [entry for part in plan.parts for entry in part.entries()]
        tensors = (tensor for part in plan.parts for tensor in part.tensors())
        files = write_safetensors(aside, entries, tensors, max_bytes=max_bytes)
        _write_files(aside, tokenizer_dir, plan, origin)
        (aside / "config.json").write_text(json.dumps(plan.config, indent=2))
        _publish(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return [target / file.name for file in files]


def _exportable(model: ModelConfig, origin: Origin) -> ModelConfig:
    """Without published parts that nothing here ever had."""
    found: dict[str, Any] = {}
    for name in ("vision", "projector", "llm"):
        part = getattr(model, name)
        found[name] = part.built_only() if isinstance(part, FamilyConfig) and name not in origin.parts else part
    return replace(model, **found)


def _family(model: ModelConfig, origin: Origin) -> Family:
    """That of the origin, where the model is still of it."""
    kind = (origin.config or {}).get("model_type")
    same = (family for family in families() if kind in family.model_types and family.obstacle(model) is None)
    return next(same, None) or family_for(model)


def _part(
    family: Family, name: str, model: ModelConfig, weights: Weights, origin: Origin, dtype: torch.dtype | None
) -> PartExport:
    component: ComponentConfig = getattr(model, name)
    assert isinstance(component, FamilyConfig)
    return PartExport(component, weights, family.name_map(name, component), origin.parts.get(name), dtype)


def _config(
    family: Family,
    model: ModelConfig,
    facts: ExportFacts,
    origin: Origin,
    parts: list[PartExport],
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """`config.json`."""
    found = family.to_hf(model, facts)
    same = origin.config is not None and origin.config.get("model_type") in family.model_types
    found = export_config(found, origin.config if same else None)
    if facts.tokenizer is not None:
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found.setdefault(key, getattr(facts.tokenizer, key))
    types = Counter(entry.dtype for part in parts for entry in part.entries())
    return found if same and dtype is None else with_dtype(found, dtype or types.most_common(1)[0][0])


def _write_files(folder: Path, tokenizer_dir: Path, plan: ExportPlan, origin: Origin) -> None:
    """Tokenizer, chat template, generation config, processor: the origin's own where it had them."""
    made, tokenizer = plan.files, plan.tokenizer
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, folder / name)
    ids = {key: getattr(tokenizer, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {key: value for key, value in ids.items() if value is not None}
    for name, content in {"generation_config.json": generation, **made}.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    for file in origin.files.iterdir() if origin.files is not None else ():
        theirs = read_json(file)
        found = plan.adjust(file.name, theirs)
        if found is theirs:
            shutil.copyfile(file, folder / file.name)
        else:
            (folder / file.name).write_text(json.dumps(found, indent=2))


def _publish(aside: Path, target: Path) -> None:
    for file in aside.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    if target.is_dir():
        target.rmdir()
    target.parent.mkdir(parents=True, exist_ok=True)
    aside.rename(target)
