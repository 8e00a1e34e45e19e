"""Recipes on disk: names, paths, and the file that `recipe=...` means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loongforge.config.errors import UserError, did_you_mean
from loongforge.config.folders import recipes_dir

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Recipe:
    """One recipe file."""

    path: Path
    node: str
    """Name of its hydra config in group `recipe`."""

    @property
    def name(self) -> str:
        """The file's stem, which is the recipe's name unless it gives another."""
        return self.path.stem


def recipe_files(config_dirs: Sequence[Path] = ()) -> dict[str, Path]:
    """Recipes that can be named: built in, or in a `-cd` folder (in it, or below `recipe/` or `recipes/`)."""
    folders = [folder / sub for folder in config_dirs for sub in ("recipe", "recipes", "")]
    files = [file for folder in [*folders, recipes_dir()] for file in sorted(folder.glob("*.yaml"))]
    return {file.stem: file for file in reversed(files)}  # the first folder wins


def find_recipe(value: str, config_dirs: Sequence[Path] = ()) -> Recipe:
    """The file that `recipe=value` names.

    Raises:
        UserError: no such recipe, with the closest match and the list.
    """
    known = recipe_files(config_dirs)
    if value in known:
        return Recipe(known[value], value)
    path = Path(value).expanduser()
    for candidate in (path, *(path.with_name(path.name + suffix) for suffix in _SUFFIXES)):
        if _is_path(value) and candidate.is_file():
            return Recipe(candidate.resolve(), re.sub(r"\W", "_", candidate.stem) + "__file")
    if path.suffix in _SUFFIXES and path.parent == Path(".") and path.stem in known:
        return Recipe(known[path.stem], path.stem)
    raise _unknown(value, path, known)


def _is_path(value: str) -> bool:
    return "/" in value or "\\" in value or value.endswith(_SUFFIXES)


def _unknown(value: str, path: Path, known: dict[str, Path]) -> UserError:
    names = ", ".join(sorted(known))
    if _is_path(value):
        nearby = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        where = "" if path.parent.is_dir() else f" Folder {path.parent} does not exist."
        return UserError(
            f"recipe={value}: no such file.{where}{did_you_mean(value, nearby)} Built-in recipes: {names}."
        )
    here = next((file for file in (Path(value + suffix) for suffix in _SUFFIXES) if file.is_file()), None)
    if here is not None:
        return UserError(f"recipe={value} is not a recipe's name. For the file here: recipe=./{here}. Names: {names}.")
    return UserError(f"recipe={value} is not known.{did_you_mean(value, known)} Allowed: {names}, or a path to a YAML.")
