"""The recipe that matches a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig

_RUNTIME = {field.name for field in dataclasses.fields(ComponentConfig)} - {"type"}


def recipe_tree(folder: Path, *, name: str | None = None) -> dict[str, Any]:
    """A whole recipe as plain values: the model of the folder with its weights, its tokenizer, a short run.

    Args:
        folder: In Hugging Face format.
        name: Of the recipe; None: the folder's.

    Raises:
        UserError: a family or a setting that is not covered.
    """
    from loongforge.checkpoint.families.registry import family_of
    from loongforge.checkpoint.hf_folder import HFFolder

    if not HFFolder.is_one(folder):
        raise UserError(f"{folder} has no config.json: it is no folder in Hugging Face format")
    found = HFFolder(folder)
    family = family_of(found.config, folder)
    parts = family.components(found.config, folder)
    model = {key: component_tree(part) for key, part in parts.items()}
    return {
        "name": name or folder.resolve().name,
        "model": {**model, "init_from": str(folder)},
        "data": {"tokenizer": str(folder), **family.data_keys(found.config, folder)},
        "optimizer": {"lr": 2e-5},
        "trainer": {"steps": 100, "global_batch_size": 8, "micro_batch_size": 1, "precision": "bf16"},
    }


def component_tree(component: ComponentConfig) -> dict[str, Any]:
    """A component's sizes, without keys that have their default values."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(component):
        value = getattr(component, field.name)
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name not in _RUNTIME and value != default:
            found[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return found
