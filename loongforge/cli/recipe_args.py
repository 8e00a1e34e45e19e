"""What every verb that takes a recipe has in common: hydra's options, composition, showing the result."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loongforge.cli.parser import Parser
from loongforge.components.registry import typed_config
from loongforge.config.compose import Composed, compose
from loongforge.config.errors import UserError, did_you_mean
from loongforge.config.saved import dump, to_tree
from loongforge.config.schema import Config

_INFO = ("all", "defaults", "searchpath")


@dataclass(frozen=True)
class Recipe:
    """A composed and validated recipe."""

    config: Config
    composed: Composed


def add_overrides(parser: Parser) -> None:
    """The `key=value` arguments and the folder option."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe, choices and values, as in hydra")
    parser.add_argument(
        "-cd", "--config-dir", metavar="DIR", action="append", default=[], help="more groups and recipes"
    )


def add_show_options(parser: Parser) -> None:
    """Hydra's options that show the config instead of using it."""
    parser.add_argument("--cfg", choices=("job", "hydra", "all"), help="show the composed config and leave")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: interpolations replaced by their values")
    parser.add_argument("-p", "--package", metavar="KEY", help="with --cfg: only this part (trainer, model.llm)")
    parser.add_argument(
        "--info", nargs="?", const="all", choices=_INFO, help="show where the config comes from and leave"
    )


def separate_info(argv: Sequence[str]) -> list[str]:
    """`--info +recipe=x` means `--info=all +recipe=x`; argparse would take the override for the option's value."""
    following = [*argv[1:], ""]
    bare = (argument == "--info" and after not in _INFO for argument, after in zip(argv, following, strict=False))
    return ["--info=all" if alone else argument for argument, alone in zip(argv, bare, strict=True)]


def load_recipe(args: argparse.Namespace) -> Recipe:
    """Composes and validates.

    Raises:
        UserError: everything that is wrong with the recipe.
    """
    composed = compose(args.overrides, config_dirs=args.config_dir)
    return Recipe(typed_config(composed.tree, composed.origin), composed)


def show(args: argparse.Namespace) -> int:
    """Prints what `--cfg` or `--info` ask for; errors of the recipe come after it."""
    composed = compose(args.overrides, config_dirs=args.config_dir)
    if args.info:
        print(_info(composed, args.info))
        return 0
    error: UserError | None = None
    defaults: dict[str, Any] = {}
    try:
        defaults = to_tree(typed_config(composed.tree, composed.origin))
    except UserError as found:
        error = found
    job = _filled(composed.tree if args.resolve else composed.raw, defaults)
    parts = {"job": job, "hydra": {"hydra": composed.hydra}, "all": {**job, "hydra": composed.hydra}}
    print(_part(parts[args.cfg], args.package), end="")
    if error is not None:
        raise error
    return 0


def _filled(given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Given values over defaults, in the schema's order."""
    merged = {**defaults, **{key: value for key, value in given.items() if key not in defaults}}
    for key, value in given.items():
        default = defaults.get(key)
        merged[key] = _filled(value, default) if isinstance(value, dict) and isinstance(default, dict) else value
    return merged


def _part(tree: dict[str, Any], package: str | None) -> str:
    if package is None:
        return dump(tree)
    part: Any = tree
    for key in package.split("."):
        if not isinstance(part, dict) or key not in part:
            known = list(part) if isinstance(part, dict) else []
            raise UserError(f"--package {package}: no key '{key}'.{did_you_mean(key, known)} Keys: {', '.join(known)}")
        part = part[key]
    return f"# @package {package}\n{dump(part)}"


def _info(composed: Composed, what: str) -> str:
    lines = []
    if what in ("all", "defaults"):
        lines += ["Merged in this order, the last one wins:"]
        lines += [f"  {config:<32}{package or '(root)'}" for config, package in composed.defaults()]
        lines += ["  command line"]
    if what in ("all", "searchpath"):
        lines += ["Groups are looked for in:", *(f"  {folder}" for folder in composed.searchpath)]
        lines += [f"Recipe: {composed.recipe.path}"]
    return "\n".join(lines)
