"""Where the YAML folders are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def _folder(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def configs_dir() -> Path:
    """Folder of the primary config and its groups."""
    return _folder("configs")


def recipes_dir() -> Path:
    """Folder of the built-in recipes."""
    return _folder("recipes")


def shown(path: Path) -> str:
    """A path as messages show it: short for our own files, else relative to the current folder where it is below."""
    for own in (configs_dir(), recipes_dir()):
        if path.is_relative_to(own):
            return f"{own.name}/{path.relative_to(own)}"
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
