"""What `init_from` a Hugging Face folder means: which tensors go to which component, and whether the recipe fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loongforge.checkpoint.families.base import Family, component_from_hf
from loongforge.checkpoint.families.registry import families, family_of
from loongforge.checkpoint.hf_checks import incomplete, left_over, listed, mixed_types, setting_differences, untied
from loongforge.checkpoint.hf_files import check_files
from loongforge.checkpoint.hf_folder import HFFolder
from loongforge.checkpoint.hf_source import Finding, HFSource
from loongforge.components.base import FamilyConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, ModelConfig


@dataclass(frozen=True)
class HFImport:
    """Components that take their weights from one folder."""

    path: Path
    config: dict[str, Any]
    """`config.json`, normalised."""
    sources: dict[str, HFSource]
    """By component."""
    owns: Callable[[str], bool]
    """Whether a tensor of the folder has to be one of these components'."""
    family: Family | None
    """Where the whole model is taken."""

    def problems(self, findings: dict[str, Finding]) -> list[str]:
        """Everything that is wrong with the folder, given what all ranks found."""
        found = {name: (self.sources[name], finding) for name, finding in findings.items()}
        problems = [line for finding in findings.values() for line in finding.problems]
        problems += left_over(found, self.owns)
        for source, finding in found.values():
            problems += incomplete(source, finding) + mixed_types(source, finding)
        return problems or [line for source, finding in found.values() for line in untied(source, finding)]


def import_whole(model: ModelConfig, path: Path) -> HFImport:
    """The whole model from a folder.

    Raises:
        UserError: a family that is not supported, or settings that differ from the recipe's.
    """
    check_files(path)
    folder, config = _open(path)
    family = family_of(config, path)
    theirs = family.components(config, path)
    ours = {name: part for name in ("vision", "projector", "llm") if (part := getattr(model, name)) is not None}
    if set(ours) != set(theirs):
        raise UserError(
            f"{path}/config.json: model_type={config['model_type']!r} has {', '.join(theirs)}; "
            f"the recipe has {', '.join(ours)}"
        )
    differences = []
    for name, part in ours.items():
        other = theirs[name]
        assert isinstance(part, FamilyConfig) and isinstance(other, FamilyConfig)
        differences += setting_differences(name, part, other, whole=True, path=path)
    _require_equal(differences, path)
    sources = {
        name: HFSource(
            folder, family.name_map(name, part), name, _vocabulary(theirs[name]), family.required(name, part, config)
        )
        for name, part in ours.items()
    }
    return HFImport(path, config, sources, lambda name: True, family)


def import_component(name: str, component: ComponentConfig, path: Path) -> HFImport:
    """One component from a folder of its own, or of a whole model.

    Raises:
        UserError: a model type that the component does not cover, or settings that differ from the recipe's.
    """
    folder, config = _open(path)
    assert isinstance(component, FamilyConfig)
    family = next((f for f in families() if config.get("model_type") in f.model_types), None)
    sections = family.sections(config) if family is not None else {}
    section, rows = sections.get(name, config), None
    if "model_type" in config:
        theirs = component_from_hf(name, section)
        assert isinstance(theirs, FamilyConfig)
        _require_equal(setting_differences(name, component, theirs, whole=False, path=path), path)
        rows = _vocabulary(theirs)
    if family is not None and len(sections) > 1:
        owner = family.owner
        source = HFSource(folder, family.name_map(name, component), name, rows)
        return HFImport(path, config, {name: source}, lambda tensor: owner(tensor) == name, None)
    source = HFSource(folder, component.name_map(), name, rows)
    alone = "model_type" in config and "vision_config" not in config
    return HFImport(path, config, {name: source}, lambda tensor: alone or _in_a_layer(source, tensor), None)


def _in_a_layer(source: HFSource, tensor: str) -> bool:
    """In a folder that holds more than the component: whether a tensor is in one of the component's layers."""
    starts = {
        prefix + rule.theirs[0].partition("{i}")[0]
        for rule in source.names.rules
        if "{i}" in rule.theirs[0]
        for prefix in source.names.prefixes
        if prefix
    }
    return tensor.startswith(tuple(starts))


def _vocabulary(component: ComponentConfig) -> int | None:
    return getattr(component, "vocab_size", None)


def _open(path: Path) -> tuple[HFFolder, dict[str, Any]]:
    folder = HFFolder(path)
    return folder, folder.config


def _require_equal(differences: list[str], path: Path) -> None:
    if differences:
        raise UserError(
            f"the recipe differs from the checkpoint in {path} (loongforge components from-hf prints one that fits):"
            + listed(differences)
        )
