"""Command-line overrides, made ready for hydra.

Value overrides are forced (`++key=value`), so that hydra accepts all of them and the strict validator can report
every mistake at once. `recipe`, `vision`, `projector` and `llm` are choices of a group whatever their prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from loongforge.config.errors import UserError
from loongforge.config.schema import SHORTHANDS

_SHARD_BRACES = re.compile(r"[^'\"]*\{[^{}'\"]*(\.\.|,)[^{}'\"]*\}[^'\"]*")


@dataclass
class SortedOverrides:
    """Overrides by what they do."""

    recipe: str | None = None
    groups: list[Override] = field(default_factory=list)
    """Choices of a config group (`llm=qwen3_tiny`)."""
    values: list[Override] = field(default_factory=list)
    """Single keys, set or deleted."""
    passed: list[str] = field(default_factory=list)
    """What only hydra understands (`hydra.searchpath`)."""


def parse(texts: Sequence[str]) -> list[Override]:
    """Parses with hydra's grammar.

    Raises:
        UserError: the texts that are not overrides, all at once.
    """
    parser, parsed, errors = OverridesParser.create(), [], []
    for text in texts:
        try:
            parsed.append(_parse_one(parser, text))
        except HydraException as error:
            reason = str(error).splitlines()[0]
            errors.append(f"override '{text}' cannot be read: {reason}. Expected key=value; quote special characters")
    if errors:
        raise UserError("\n".join(errors))
    return parsed


def _parse_one(parser: OverridesParser, text: str) -> Override:
    try:
        return parser.parse_override(text)
    except HydraException:
        key, equals, value = text.partition("=")
        # A brace pattern of shards is not in hydra's grammar, and quoting it twice is what nobody expects.
        if equals and key.lstrip("+") in ("data.train", "data.eval") and _SHARD_BRACES.fullmatch(value):
            return parser.parse_override(f"{key}={quoted(value)}")
        raise


def quoted(text: str) -> str:
    """A value as hydra's grammar wants text with special characters."""
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    return f"'{escaped}'"


def value_text(override: Override) -> str:
    """What stands after the first `=`."""
    return (override.input_line or "").partition("=")[2]


def sort_overrides(parsed: Iterable[Override], is_group: Callable[[str], bool]) -> SortedOverrides:
    """Tells recipe, groups and values apart.

    Raises:
        UserError: a sweep outside a multirun, two recipes, or a setting of hydra that has no effect here.
    """
    result = SortedOverrides()
    for override in parsed:
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override():
            raise UserError(f"override '{text}' lists several values: add -m to run one job for each, or quote it")
        if key == "recipe" and override.package in (None, "_global_"):
            _set_recipe(result, override)
        elif key == "hydra.searchpath":
            result.passed.append(text or "")
        elif key.startswith(("hydra.", "hydra/")):
            raise UserError(f"override '{text}' has no effect: loongforge runs jobs itself.{_instead(key)}")
        elif is_group(key) or override.package is not None:
            result.groups.append(override)
        else:
            result.values.append(override)
    return result


def _set_recipe(result: SortedOverrides, override: Override) -> None:
    if override.is_delete():
        raise UserError("override '~recipe' leaves nothing to run")
    if result.recipe is not None:
        raise UserError(f"two recipes: {result.recipe} and {value_text(override)}; give one")
    result.recipe = str(override.value())


def _instead(key: str) -> str:
    instead = {"hydra.run.dir": "run.dir=DIR", "hydra.sweep.dir": "-m with run.dir=DIR"}.get(key)
    return f" Use {instead}." if instead else ""


def forced(override: Override) -> str:
    """A value override that hydra takes whether or not the key exists."""
    if override.is_delete():
        return override.input_line or ""
    assert override.input_line is not None
    return f"++{override.key_or_group}={value_text(override)}"


def group_choice(override: Override, present: Iterable[str]) -> str:
    """A group override with the prefix that hydra wants: `+` where the defaults list has no such group yet."""
    group = override.key_or_group
    package = override.package or SHORTHANDS.get(group)
    name = f"{group}@{package}" if package else group
    if override.is_delete():
        return f"~{name}"
    return f"{'' if name in set(present) else '+'}{name}={value_text(override)}"
