"""Data sets that come with loongforge: written on first use, nothing is downloaded."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from loongforge.config.errors import UserError, did_you_mean
from loongforge.data.builtin.publish import publish

_MODULES = {"digits_vqa": "loongforge.data.builtin.digits_vqa", "pydoc_text": "loongforge.data.builtin.pydoc_text"}

NAMES = tuple(_MODULES)
"""Names that `build` knows."""


def default_dir(name: str) -> Path:
    """Where `build` writes a data set when no folder is given: `data/<name>` below the current folder."""
    return Path("data") / name


def build(name: str, out: str | os.PathLike[str] | None = None) -> Path:
    """Writes an embedded data set, or returns the folder as it is where the data set is already there, whole.

    Several processes may call this at once: one builds, the others wait. The folder appears complete or not at all.

    Args:
        name: one of `NAMES`.
        out: folder to write; None: `default_dir(name)`.

    Returns:
        The folder, with the data files, `tokenizer/` and `manifest.json`.

    Raises:
        UserError: unknown name, folder not writable, damaged or occupied by something else.
    """
    if name not in _MODULES:
        raise UserError(
            f"no embedded data set is named '{name}'.{did_you_mean(name, NAMES)} There are: {', '.join(NAMES)}"
        )
    module = importlib.import_module(_MODULES[name])
    return publish(name, module.VERSION, Path(out) if out is not None else default_dir(name), module.write)
