"""The recipe that matches a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import AnySizeVisionConfig, VisionConfig
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
    from loongforge.checkpoint.hf_files import check_files
    from loongforge.checkpoint.hf_folder import HFFolder

    if not HFFolder.is_one(folder):
        raise UserError(f"{folder} has no config.json: it is no folder in Hugging Face format")
    check_files(folder)
    found = HFFolder(folder)
    family = family_of(found.config, folder)
    parts = family.components(found.config, folder)
    _make_room(parts)
    model = {key: component_tree(part) for key, part in parts.items()}
    return {
        "name": name or folder.resolve().name,
        "model": {**model, "init_from": str(folder)},
        "data": {"tokenizer": str(folder), **family.data_keys(found.config, folder)},
        "optimizer": {"lr": 2e-5},
        "trainer": {"steps": 100, "global_batch_size": 8, "micro_batch_size": 1, "precision": "bf16"},
    }


def _make_room(parts: dict[str, ComponentConfig]) -> None:
    """An image must leave room for text, which transformers does not ask for: the size that is counted with follows the
    context where images keep their own; else the context follows the image."""
    vision, projector, llm = parts.get("vision"), parts.get("projector"), parts["llm"]
    if not isinstance(vision, VisionConfig) or not isinstance(projector, ProjectorConfig):
        return
    assert isinstance(llm, LLMConfig)
    if isinstance(vision, AnySizeVisionConfig):
        edge = vision.patch_size * vision.merge_size
        most = min(vision.image_size**2, vision.max_pixels, edge**2 * (llm.max_seq_len - 1))
        vision.image_size = max(1, int(most**0.5) // edge) * edge
    tokens = projector.num_tokens(vision.num_image_tokens)
    if tokens >= llm.max_seq_len:
        llm.max_seq_len = 2 * tokens


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
