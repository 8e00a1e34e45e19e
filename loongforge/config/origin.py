"""Where a value of a composed config comes from: an override, or a line of a YAML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from loongforge.config.folders import shown


@dataclass(frozen=True)
class Layer:
    """One YAML file of the composition."""

    file: Path
    package: str
    """Where its keys go (`model.vision`); empty: the root."""


class Origins:
    """Answers which override or file gave a key its value."""

    def __init__(self, overrides: Sequence[tuple[str, str]], layers: Callable[[], Sequence[Layer]]) -> None:
        """
        Args:
            overrides: (key, text of the override) in the order given.
            layers: Gives the files in the order merged, the last one wins; called when first needed.
        """
        self._overrides = list(overrides)
        self._find_layers = cache(layers)

    def __call__(self, key: str) -> str:
        """`override 'trainer.steps=abc'`, `recipes/llava_sft.yaml:14`, or the empty string for a default."""
        for target, text in reversed(self._overrides):
            if target == key or key.startswith(f"{target}."):
                return f"override '{text}'"
        for layer in reversed(self._find_layers()):
            line = self._line(layer, key.split("."))
            if line is not None:
                return f"{shown(layer.file)}:{line}"
        below = (text for target, text in self._overrides if target.startswith(f"{key}."))
        return next((f"override '{text}'" for text in below), "")

    @staticmethod
    def _line(layer: Layer, keys: list[str]) -> int | None:
        prefix = layer.package.split(".") if layer.package else []
        if keys[: len(prefix)] != prefix or len(keys) == len(prefix):
            return None
        return key_line(layer.file, tuple(keys[len(prefix) :]))


@cache
def _document(file: Path) -> yaml.Node | None:
    return yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)


def key_line(file: Path, keys: Sequence[str]) -> int | None:
    """Line (from 1) on which a key stands in a YAML file, or None."""
    node, line = _document(file), None
    for key in keys:
        found = _child(node, key)
        if found is None:
            return None
        node, line = found
    return line


def _child(node: yaml.Node | None, key: str) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if name.value == key:
                return value, name.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
        item = node.value[int(key)]
        return item, item.start_mark.line + 1
    return None
