"""Composition of a recipe with hydra: built-in groups, the recipe, the command line, in this order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loongforge.config.errors import UserError, closest, did_you_mean
from loongforge.config.folders import configs_dir, shown
from loongforge.config.origin import Layer, Origins
from loongforge.config.overrides import forced, group_choice, parse, sort_overrides, value_text
from loongforge.config.plugins import located
from loongforge.config.recipes import Recipe, find_recipe, recipe_files
from loongforge.config.resolve import resolve
from loongforge.config.schema import SHORTHANDS

_PRIMARY = "config"


@dataclass(frozen=True)
class Composed:
    """A recipe, composed but not yet judged."""

    tree: dict[str, Any]
    """Plain and resolved."""
    raw: dict[str, Any]
    """Plain, with interpolations as written."""
    hydra: dict[str, Any]
    """Hydra's own settings."""
    origin: Callable[[str], str]
    """Which override or file gave a key its value."""
    recipe: Recipe
    searchpath: list[Path]
    """Folders of config groups."""
    defaults: Callable[[], list[tuple[str, str]]]
    """Gives (config, package) of everything that was merged, in that order."""


def compose(overrides: Sequence[str], *, config_dirs: Sequence[str | Path] = ()) -> Composed:
    """Composes the recipe that the overrides name.

    Args:
        overrides: As on the command line: `recipe=llava_sft`, `llm=qwen3_tiny`, `trainer.steps=10`, `~key`.
        config_dirs: Further folders of groups and recipes (`-cd`).

    Raises:
        UserError: no or an unknown recipe, an unknown choice, an override that cannot be read, a broken YAML file.
    """
    folders = [_existing(Path(folder)) for folder in config_dirs]
    roots = [configs_dir(), *folders]
    wanted = sort_overrides(parse(overrides), lambda key: _is_group(key, roots))
    if wanted.recipe is None:
        known = ", ".join(sorted(recipe_files(folders)))
        raise UserError(f"no recipe given: add +recipe=NAME or +recipe=PATH. Names: {known}.")
    recipe = find_recipe(wanted.recipe, folders)
    given = {value_text(override) for override in wanted.groups}
    with _hydra(recipe, folders) as loader, _readable(roots, given):
        texts = [*_searchpath(folders, wanted.passed), f"+recipe@_global_={recipe.node}"]
        if wanted.groups:
            present = loader.compute_defaults_list(_PRIMARY, texts, RunMode.RUN).overrides.known_choices
            texts += [group_choice(override, present) for override in wanted.groups]
        texts += [forced(override) for override in wanted.values]
        config = hydra_compose(_PRIMARY, overrides=texts, return_hydra_config=True)
    values = [(override.key_or_group, override.input_line or "") for override in wanted.values]
    return _composed(config, recipe, folders, texts, values)


def _composed(
    config: DictConfig, recipe: Recipe, folders: list[Path], texts: list[str], values: list[tuple[str, str]]
) -> Composed:
    OmegaConf.set_struct(config, False)
    hydra: Any = OmegaConf.to_container(config.pop("hydra"), resolve=False)
    config.setdefault("name", recipe.name)
    raw: Any = OmegaConf.to_container(config, resolve=False)
    tree = resolve(config)
    if isinstance(tree.get("plugins"), list):
        tree["plugins"] = [located(entry, recipe.path.parent) for entry in tree["plugins"]]
    sources = [configs_dir(), *(Path(path.removeprefix("file://")) for path in hydra["searchpath"])]

    def defaults() -> list[tuple[str, str]]:
        with _hydra(recipe, folders) as loader:
            found = loader.compute_defaults_list(_PRIMARY, texts, RunMode.RUN).defaults
        return [(d.config_path, d.package or "") for d in found if d.config_path and not _is_hydras_own(d)]

    def layers() -> list[Layer]:
        merged = ((_file_of(path, recipe, sources), package) for path, package in defaults())
        return [Layer(file, package) for file, package in merged if file]

    return Composed(tree, raw, hydra, Origins(values, layers), recipe, sources, defaults)


def _is_hydras_own(default: ResultDefault) -> bool:
    return (default.package or "").split(".")[0] == "hydra" or (default.config_path or "").startswith("hydra/")


def _file_of(config_path: str, recipe: Recipe, sources: Sequence[Path]) -> Path | None:
    if config_path.startswith("recipe/"):
        node = config_path.removeprefix("recipe/")
        return recipe.path if node == recipe.node else recipe_files(sources).get(node)
    files = (source / f"{config_path}.yaml" for source in sources)
    return next((file for file in files if file.is_file()), None)


def _existing(folder: Path) -> Path:
    if not folder.expanduser().is_dir():
        raise UserError(f"--config-dir {folder}: no such folder")
    return folder.expanduser().resolve()


def _is_group(key: str, roots: Sequence[Path]) -> bool:
    return key in SHORTHANDS or ("." not in key and any((root / key).is_dir() for root in roots))


def _searchpath(folders: Sequence[Path], passed: Sequence[str]) -> list[str]:
    if folders and passed:
        raise UserError("give folders either with --config-dir or with hydra.searchpath, not with both")
    quoted = ",".join(f"'file://{folder}'" for folder in folders)
    return [f"hydra.searchpath=[{quoted}]"] if folders else list(passed)


@contextmanager
def _hydra(recipe: Recipe, folders: Sequence[Path]) -> Iterator[ConfigLoader]:
    """Hydra over our folders, with every recipe as a config of group `recipe` (so that one can build on another)."""
    store = ConfigStore.instance()
    store.repo.pop("recipe", None)
    files = {**recipe_files(folders), recipe.node: recipe.path}
    for node, file in files.items():
        if not any(file.parent == folder / "recipe" for folder in folders):  # those hydra finds itself
            store.store(name=node, group="recipe", package="_global_", node=_load(file, strict=file == recipe.path))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs_dir()), version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        store.repo.pop("recipe", None)


def _load(file: Path, *, strict: bool) -> DictConfig:
    """A recipe's YAML; a broken one matters only where it is the one to run."""
    try:
        loaded = OmegaConf.load(file)
        if isinstance(loaded, DictConfig) and "hydra" not in loaded:
            return loaded
        reason = "`hydra:` has no effect in a recipe; remove it" if "hydra" in loaded else "it is not a mapping of keys"
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        reason = yaml_reason(error)
    if strict:
        raise UserError(f"{shown(file)}: not a readable recipe: {reason}")
    return OmegaConf.create()


def yaml_reason(error: Exception) -> str:
    """What is wrong with a YAML file, in one line, with the line number."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {what}" if mark else what


@contextmanager
def _readable(roots: Sequence[Path], given: Collection[str]) -> Iterator[None]:
    """Turns hydra's exceptions into one clear message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MissingConfigException as error:
        raise _unknown_choice(error, roots, given) from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
        raise UserError(f"the recipe cannot be composed: {' '.join(lines[:3])}") from error


def _unknown_choice(error: MissingConfigException, roots: Sequence[Path], given: Collection[str]) -> UserError:
    missing = error.missing_cfg_file or ""
    group, _, name = missing.rpartition("/")
    where = str(error).splitlines()[0]
    in_recipe = where.startswith("In 'recipe/") and name not in given
    where = f" ({where.split(':')[0]})" if in_recipe else ""
    if error.options:
        options = ", ".join(error.options)
        return UserError(f"{group}={name} is not known{where}.{did_you_mean(name, error.options)} Allowed: {options}.")
    groups = sorted({folder.name for root in roots for folder in root.iterdir() if folder.is_dir()})
    near = closest(group, groups)
    hint = f" Did you mean '{near}/{name}'?" if near else ""
    return UserError(f"'{missing}' is not known{where}.{hint} Groups: {', '.join(groups)}.")
