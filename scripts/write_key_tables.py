"""Writes the tables of all recipe keys into docs/recipes.md, from the dataclasses and their field docstrings.

Run it after a change of `loongforge/config/schema.py` or of a component's config; a test compares.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path

from loongforge.components.registry import KINDS, lookup, names
from loongforge.config import launch_schema, schema

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- keys: begin (scripts/write_key_tables.py) -->", "<!-- keys: end -->"

_SECTIONS = {
    "": schema.Config,
    "model.COMPONENT": schema.ComponentConfig,
    "model.COMPONENT.parallel": schema.ParallelConfig,
    "model.COMPONENT.lora": schema.LoraConfig,
    "data": schema.DataConfig,
    "data.train[], data.eval[]": schema.SourceConfig,
    "optimizer": schema.OptimizerConfig,
    "trainer": schema.TrainerConfig,
    "checkpoint": schema.CheckpointConfig,
    "logging": schema.LoggingConfig,
    "profile": schema.ProfileConfig,
    "kernels": schema.KernelsConfig,
    "launcher": schema.LauncherConfig,
    "cluster": schema.ClusterConfig,
    "cluster.slurm": launch_schema.SlurmConfig,
    "cluster.kubernetes": launch_schema.KubernetesConfig,
    "run": schema.RunConfig,
}


@dataclass(frozen=True)
class Key:
    """One field of a config dataclass, in words."""

    name: str
    type: str
    default: str
    meaning: str


def keys_of(cls: type) -> dict[str, Key]:
    """Fields of a dataclass and its bases by name, those of the bases first."""
    found: dict[str, Key] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            assert isinstance(tree, ast.ClassDef)
            for key in _own_keys(tree):
                inherited = found[key.name].meaning if key.name in found else ""
                found[key.name] = replace(key, meaning=key.meaning or inherited)
    return found


def _own_keys(tree: ast.ClassDef) -> Iterator[Key]:
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _of_class(node.annotation):
            has_doc = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meaning = " ".join(str(after.value.value).split()) if has_doc else ""  # type: ignore[union-attr]
            yield Key(node.target.id, _type(ast.unparse(node.annotation)), _default(node.value), meaning)


def _of_class(annotation: ast.expr) -> bool:
    return ast.unparse(annotation).startswith("ClassVar")


def _type(annotation: str) -> str:
    """`Literal['fp32', 'bf16'] | None` -> "`fp32`, `bf16` or null"."""
    parts = re.split(r" \| (?![^\[]*\])", annotation)
    return " or ".join("null" if part == "None" else _one_type(part) for part in parts)


def _one_type(part: str) -> str:
    if literal := re.fullmatch(r"Literal\[(.*)\]", part):
        return ", ".join(f"`{choice.strip().strip(chr(39))}`" for choice in literal[1].split(","))
    known = {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}
    if listed := re.fullmatch(r"list\[(.*)\]", part):
        return f"list of {known.get(listed[1], listed[1].removesuffix('Config').lower())}"
    if part.startswith("dict"):
        return "mapping"
    return known.get(part, "section" if part.endswith("Config") else part)


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    if isinstance(value, ast.Call):  # field(default_factory=...)
        factory = value.keywords[0].value
        return f"`{ast.unparse(factory.body)}`" if isinstance(factory, ast.Lambda) else _made_by(ast.unparse(factory))
    if isinstance(value, ast.Name):
        return f"`{getattr(schema, value.id)}`"
    constant = ast.literal_eval(value)
    return "null" if constant is None else f"`{str(constant).lower() if isinstance(constant, bool) else constant}`"


def _made_by(factory: str) -> str:
    return {"list": "`[]`", "dict": "`{}`"}.get(factory, "")


def _table(keys: dict[str, Key]) -> list[str]:
    rows = [f"| `{key.name}` | {key.type} | {key.default} | {_escaped(key.meaning)} |" for key in keys.values()]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]


def _escaped(text: str) -> str:
    return re.sub(r"([|<])", r"\\\1", text)


def _without(keys: dict[str, Key], known: dict[str, Key]) -> dict[str, Key]:
    return {name: key for name, key in keys.items() if known.get(name) != key}


def tables() -> str:
    """All tables as Markdown."""
    lines: list[str] = []
    for name, cls in _SECTIONS.items():
        title = f"`{name}`" if name else "Top level"
        keys = {n: key for n, key in keys_of(cls).items() if key.type not in ("section", "section or null")}
        if name == "data.train[], data.eval[]":
            title = "`data.train` and `data.eval`, where they are lists"
        lines += [f"### {title}", "", inspect.cleandoc(cls.__doc__ or ""), "", *_table(keys)]
    for kind in KINDS:
        for name in names(kind):
            cls = lookup(kind, name)
            own = _without(keys_of(cls), keys_of(schema.ComponentConfig))
            lines += [f"### `model.{kind}`, `type: {name}`", "", inspect.cleandoc(cls.__doc__ or ""), "", *_table(own)]
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """The page with its tables renewed."""
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
