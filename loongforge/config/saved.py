"""A run's `config.yaml`: the whole recipe, resolved, with its version."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import yaml

from loongforge.config.errors import UserError
from loongforge.config.schema import SCHEMA_VERSION, Config


def to_tree(config: Config) -> dict[str, Any]:
    """The config as plain values, defaults included."""
    return dataclasses.asdict(config)


def save_config(config: Config | dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes a config so that the file appears complete or not at all."""
    tree = to_tree(config) if isinstance(config, Config) else config
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(dump({"version": SCHEMA_VERSION, **tree}), encoding="utf-8")
    temporary.replace(target)


def dump(tree: Any) -> str:
    """YAML of plain values, in the order given."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)


def load_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The tree of a run's `config.yaml`, for `build_config`.

    Raises:
        UserError: no such file, not YAML, or written by a later loongforge.
    """
    from loongforge.config.validate import newer_version

    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} is not a config: it holds no keys")
    version = tree.get("version")
    if type(version) is not int:
        raise UserError(f"{path} is not a config of a run: version={version!r}, expected {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise UserError(newer_version(str(path), version))
    return tree
