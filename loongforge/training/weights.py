"""Weights that a recipe starts from (`init_from`)."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from loongforge.checkpoint.hf_folder import HFFolder
from loongforge.checkpoint.hf_import import HFImport, import_component, import_whole
from loongforge.checkpoint.hf_origin import FOLDER, write_origin
from loongforge.checkpoint.hf_source import Finding
from loongforge.checkpoint.lifecycle import resolve
from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.model.assembly import component_configs
from loongforge.model.hf_weights import load_hf_weights
from loongforge.model.vlm import VisionLanguageModel
from loongforge.model.weights import load_weights
from loongforge.parallel.groups import Groups


def starting_points(config: Config) -> dict[str | None, Path]:
    """Folders by component, None for the whole model; a component's own comes last and wins."""
    found: dict[str | None, str | None] = {None: config.model.init_from}
    found.update({name: part.init_from for name, part in component_configs(config).items()})
    return {name: Path(path) for name, path in found.items() if path is not None}


def check_init_from(config: Config) -> None:
    """Refuses folders that do not exist before anything is built.

    Raises:
        UserError: naming the key.
    """
    for name, path in starting_points(config).items():
        if not path.is_dir():
            key = "model.init_from" if name is None else f"model.{name}.init_from"
            raise UserError(f"{key}={path}: no such folder")


@dataclass
class StartingWeights:
    """What `init_from` brought."""

    notes: list[str] = field(default_factory=list)
    """A line for each component."""
    imports: list[tuple[HFImport, dict[str, Finding]]] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    """Of loongforge."""

    def keep_origin(self, folder: Path) -> None:
        """Writes what an export needs of the folders. One rank's work."""
        for path in self.checkpoints:
            if (path / FOLDER).is_dir():
                shutil.copytree(path / FOLDER, folder, dirs_exist_ok=True)
        if self.imports:
            write_origin(folder, self.imports)


def load_initial_weights(config: Config, model: VisionLanguageModel, groups: Groups) -> StartingWeights:
    """Takes the weights that the recipe starts from. Collective over the world."""
    started = StartingWeights()
    for name, path in starting_points(config).items():
        if HFFolder.is_one(path):
            parts = component_configs(config)
            wanted = import_whole(config.model, path) if name is None else import_component(name, parts[name], path)
            findings = load_hf_weights(model, wanted)
            started.imports.append((wanted, findings))
            started.notes += describe(findings, path)
        else:
            found = resolve(path).path
            load_weights(found, model, groups, None if name is None else [name], new_adapters=True)
            started.checkpoints.append(found)
            started.notes.append(f"{name or 'model'}: weights from {found}")
    return started


def describe(findings: dict[str, Finding], path: Path) -> list[str]:
    """A line for each component, and one for each tensor that has grown."""
    notes = [f"{name}: weights from {path} ({len(finding.taken)} tensors)" for name, finding in findings.items()]
    for finding in findings.values():
        for tensor, (old, new) in finding.grown.items():
            notes.append(f"{tensor}: {old} rows grown to {new}; the new ones are the mean of the old")
    return notes
