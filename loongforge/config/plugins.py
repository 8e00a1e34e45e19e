"""Entries of `plugins:`: Python files or modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def is_file_plugin(entry: str) -> bool:
    """Whether an entry is a file (else a module)."""
    return entry.endswith(".py") or "/" in entry


def located(entry: Any, recipe_folder: Path) -> Any:
    """A file by its full path, looked for here and then beside the recipe, so that a saved config works anywhere."""
    if not isinstance(entry, str) or not is_file_plugin(entry):
        return entry
    path = Path(entry).expanduser()
    beside = recipe_folder / path
    return str(beside if beside.is_file() and not path.is_file() else path.absolute())
