"""What a process is to do, as data: an entry point, the recipe, and arguments."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loongforge.components.registry import typed_config
from loongforge.kernels.backend import select


@dataclass(frozen=True)
class Job:
    """Calls `entry(config, tree, **arguments) -> exit code`."""

    entry: str
    """`module:function`."""
    tree: dict[str, Any]
    """The whole recipe, plain and resolved."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """More for the function; plain values."""

    def run(self) -> int:
        """Does it in this process, and returns the exit code."""
        module, _, name = self.entry.partition(":")
        config = typed_config(self.tree)
        select(config.backend).activate()  # before the entry's module imports megatron-core
        function: Callable[..., int] = getattr(importlib.import_module(module), name)
        return function(config, self.tree, **self.arguments)

    def save(self, path: Path) -> None:
        """Writes the job for other processes to read."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Job:
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
