"""Weights that a recipe starts from (`init_from`)."""

from __future__ import annotations

from pathlib import Path

from loongforge.checkpoint.hf import HFFolder, full_tensors
from loongforge.checkpoint.lifecycle import resolve
from loongforge.components.sharding import fill_parameters
from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.model.assembly import component_configs
from loongforge.model.vlm import VisionLanguageModel
from loongforge.model.weights import load_weights
from loongforge.parallel.groups import Groups


def check_init_from(config: Config) -> None:
    """Refuses folders that do not exist before anything is built.

    Raises:
        UserError: naming the key.
    """
    for name, component in component_configs(config).items():
        if component.init_from is not None and not Path(component.init_from).is_dir():
            raise UserError(f"model.{name}.init_from={component.init_from}: no such folder")


def load_initial_weights(config: Config, model: VisionLanguageModel, groups: Groups) -> list[str]:
    """Takes the weights that the recipe starts from. Collective over the world.

    Returns:
        A line for each component that took some.
    """
    notes = []
    for name, component in component_configs(config).items():
        if component.init_from is None:
            continue
        path = Path(component.init_from)
        if HFFolder.is_one(path):
            _from_hf(config, model, name, path)
        else:
            path = resolve(path).path
            load_weights(path, model, groups, [name], new_adapters=True)
        notes.append(f"{name}: weights from {path}")
    return notes


def _from_hf(config: Config, model: VisionLanguageModel, name: str, path: Path) -> None:
    module = model.components().get(name)
    if module is not None:
        name_map = component_configs(config)[name].name_map()  # type: ignore[attr-defined]
        folder = HFFolder(path)
        fill_parameters(module, full_tensors(folder, name_map.full_tensor), module.tp_group)
        folder.require_whole_layers()
