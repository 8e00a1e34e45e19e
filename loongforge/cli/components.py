"""`loongforge components`: lists what a model can be made of."""

from __future__ import annotations

import json
from collections.abc import Sequence

from loongforge.cli.parser import Parser, pick
from loongforge.components.registry import KINDS, load_plugins, names
from loongforge.config.folders import configs_dir

_EXAMPLES = """
  loongforge components list
  loongforge components list --json
  loongforge components list --plugin my_projector.py"""


def run(argv: Sequence[str]) -> int:
    """Runs a sub-verb; returns the exit code."""
    _, rest = pick("components", argv, {"list": "types and their ready-made sizes"})
    return _list(rest)


def _list(argv: Sequence[str]) -> int:
    parser = Parser("components list", "Lists component types and the sizes that come with them.", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE", help="load your own first; repeatable")
    args = parser.parse(argv)
    load_plugins(args.plugin)
    found = {kind: {"types": names(kind), "configs": _configs(kind)} for kind in KINDS}
    print(json.dumps(found) if args.json else "\n".join(_lines(found)))
    return 0


def _configs(kind: str) -> list[str]:
    return sorted(file.stem for file in (configs_dir() / kind).glob("*.yaml"))


def _lines(found: dict[str, dict[str, list[str]]]) -> list[str]:
    lines = []
    for kind, lists in found.items():
        lines += [kind, f"  types    {', '.join(lists['types'])}", f"  configs  {', '.join(lists['configs'])}"]
    return lines
