"""From a composed tree to typed dataclasses, strictly: every mistake is collected and reported at once."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from loongforge.config.checks import range_problem
from loongforge.config.errors import UserError, closest, did_you_mean
from loongforge.config.resolve import MISSING, Unresolved
from loongforge.config.schema import SCHEMA_VERSION, SHORTHANDS, ComponentConfig, Config

ComponentTypes = Callable[[str, str], "type | None"]
"""(kind, name) -> dataclass of a component's section; raises UserError or returns None where there is none."""

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_BAD = object()
"""Stands for a value that has been reported already."""


def build_config(
    tree: dict[str, Any], component_types: ComponentTypes, origin: Callable[[str], str] = lambda key: ""
) -> Config:
    """The typed config of a composed tree.

    Args:
        tree: Plain and resolved, as `Composed.tree` or `load_config` give it.
        component_types: The registry's `lookup`.
        origin: Where a key got its value, for messages.

    Raises:
        UserError: unknown keys, wrong types, missing values and impossible numbers, all in one message.
    """
    if isinstance(tree.get("version"), int) and tree["version"] > SCHEMA_VERSION:
        raise UserError(newer_version("the recipe", tree["version"]))
    reader = _Reader(component_types, origin)
    config = reader.dataclass(Config, tree, "")
    if reader.errors:
        count = "1 error" if len(reader.errors) == 1 else f"{len(reader.errors)} errors"
        raise UserError(f"The recipe has {count}:\n" + "\n".join(f"  - {error}" for error in reader.errors))
    assert isinstance(config, Config)
    return config


def newer_version(what: str, version: int) -> str:
    """Message for a config written by a later loongforge."""
    return f"{what} has version={version}, newer than {SCHEMA_VERSION}, which this loongforge reads; update loongforge"


class _Reader:
    """One pass over a tree; a value that is wrong becomes `_BAD`, so that it is reported once."""

    def __init__(self, component_types: ComponentTypes, origin: Callable[[str], str]) -> None:
        self.errors: list[str] = []
        self._component_types = component_types
        self._origin = origin

    def fail(self, key: str, value: Any, why: str) -> Any:
        """Notes an error of a given value."""
        where = self._origin(key)
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
        self.errors.append(f"{key}={shown}" + (f" ({where})" if where else "") + f": {why}")
        return _BAD

    def dataclass(self, cls: type, tree: Any, path: str) -> Any:
        """An instance of a dataclass from a mapping."""
        if not isinstance(tree, dict):
            return self.fail(path, tree, f"expected a section with keys {', '.join(_keys(cls))}")
        if issubclass(cls, ComponentConfig):
            found = self._component(cls, tree, path)
            if found is None:
                return _BAD
            cls = found
        fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
        hints = get_type_hints(cls)
        for key in tree:
            if key not in fields:
                self._unknown(key, tree[key], path, fields)
        values = {name: self._field(field, hints[name], tree, _join(path, name)) for name, field in fields.items()}
        good = {name: value for name, value in values.items() if value is not _ABSENT}
        incomplete = any(value is _BAD for value in good.values()) or _required_absent(values, fields)
        return _BAD if incomplete else cls(**good)

    def _component(self, base: type, tree: dict[str, Any], path: str) -> type | None:
        """The registered dataclass of a component's section, by its `type`."""
        kind, name = path.rpartition(".")[2], tree.get("type", MISSING)
        if not isinstance(name, str) or name == MISSING:
            self._missing(_join(path, "type"), "a registered name (loongforge components list)")
            return None
        try:
            found = self._component_types(kind, name)
        except UserError as error:
            self.fail(_join(path, "type"), name, str(error))
            return None
        if found is None:
            self.fail(_join(path, "type"), name, f"no {kind} of that type is registered")
        return found

    def _field(self, field: dataclasses.Field[Any], hint: Any, tree: dict[str, Any], key: str) -> Any:
        given = tree.get(field.name, MISSING)
        if isinstance(given, str) and given == MISSING:
            if field.name in tree or _is_required(field):
                self._missing(key, _expected(hint))
            return _ABSENT
        value = self.value(hint, given, key)
        problem = None if value is _BAD else range_problem(key, value)
        return self.fail(key, given, problem) if problem else value

    def _missing(self, key: str, expected: str) -> None:
        where = self._origin(key)
        self.errors.append(f"{key} is missing" + (f" ({where})" if where else "") + f": give {expected}")

    def _unknown(self, key: str, value: Any, path: str, fields: dict[str, Any]) -> None:
        allowed = list(fields)
        near = closest(key, allowed if path else [*allowed, *SHORTHANDS, "recipe"])
        elsewhere = next((known for known in _known_keys(Config, "") if known.rpartition(".")[2] == key), None)
        meant = elsewhere or (near and _join(path, near))
        hint = f" Did you mean '{meant}'?" if meant else ""
        self.fail(_join(path, key), value, f"unknown key.{hint} Allowed: {', '.join(allowed)}")

    def value(self, hint: Any, value: Any, key: str) -> Any:
        """A value of the annotated type, or `_BAD`."""
        if isinstance(value, Unresolved):
            return self.fail(key, str(value), value.reason)
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            return self._union(hint, value, key)
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            return self.dataclass(hint, value, key)
        if origin is Literal:
            return value if _in_literal(value, get_args(hint)) else self._wrong(hint, value, key)
        if origin in (list, tuple):
            return self._list(hint, value, key)
        if origin is dict:
            return self._dict(hint, value, key)
        if hint is Any:
            return value
        return self._scalar(hint, value, key)

    def _wrong(self, hint: Any, value: Any, key: str) -> Any:
        choices = [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []
        near = did_you_mean(str(value), choices)
        return self.fail(key, value, f"expected {_expected(hint)}.{near}" if near else f"expected {_expected(hint)}")

    def _union(self, hint: Any, value: Any, key: str) -> Any:
        """The one option that a value can be meant for reports the details; else all are named."""
        options = get_args(hint)
        if value is None:
            return None if type(None) in options else self._wrong(hint, value, key)
        fitting = [option for option in options if option is not type(None) and _may_hold(option, value)]
        return self.value(fitting[0], value, key) if fitting else self._wrong(hint, value, key)

    def _list(self, hint: Any, value: Any, key: str) -> Any:
        if not isinstance(value, list | tuple):
            return self._wrong(hint, value, key)
        items = [self.value(get_args(hint)[0], item, f"{key}.{i}") for i, item in enumerate(value)]
        return _BAD if any(item is _BAD for item in items) else get_origin(hint)(items)

    def _dict(self, hint: Any, value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            return self._wrong(hint, value, key)
        items = {name: self.value(get_args(hint)[1], item, _join(key, str(name))) for name, item in value.items()}
        return _BAD if any(item is _BAD for item in items.values()) else items

    def _scalar(self, hint: type, value: Any, key: str) -> Any:
        if hint is float and not isinstance(value, bool):
            # PyYAML reads 1e-3 (no dot) as text.
            try:
                return float(value) if isinstance(value, int | float | str) else self._wrong(hint, value, key)
            except ValueError:
                return self._wrong(hint, value, key)
        return value if type(value) is hint else self._wrong(hint, value, key)


_ABSENT = object()
"""Stands for a field that is not given: its default holds."""


def _required_absent(values: dict[str, Any], fields: dict[str, dataclasses.Field[Any]]) -> bool:
    return any(value is _ABSENT and _is_required(fields[name]) for name, value in values.items())


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _known_keys(cls: type, path: str) -> Iterator[str]:
    """Every key of the schema, components left out (their keys depend on their type)."""
    for name, hint in get_type_hints(cls).items():
        yield _join(path, name)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _known_keys(hint, _join(path, name))


def _keys(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _in_literal(value: Any, choices: tuple[Any, ...]) -> bool:
    return any(value == choice and type(value) is type(choice) for choice in choices)


def _may_hold(option: Any, value: Any) -> bool:
    """Whether a value has the shape of an option of a union, details aside."""
    if isinstance(value, Unresolved):
        return True
    kind = get_origin(option) or option
    if kind in (list, tuple):
        return isinstance(value, list | tuple)
    if kind is dict or dataclasses.is_dataclass(kind):
        return isinstance(value, dict)
    if kind is Literal:
        return _in_literal(value, get_args(option))
    if kind is float:
        return isinstance(value, int | float | str) and not isinstance(value, bool)
    return kind is Any or type(value) is kind


def _expected(hint: Any) -> str:
    """What a type allows, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_expected(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(str(arg) for arg in args)
    if origin in (list, tuple):
        return f"a list, each item {_expected(args[0])}"
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return f"a section with keys {', '.join(_keys(hint))}"
    return "a mapping" if origin is dict else _WORDS.get(hint, "any value")
