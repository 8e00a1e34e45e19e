"""`loongforge components`: lists what a model can be made of, and finds what a checkpoint is made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from loongforge.cli.parser import Parser, pick
from loongforge.components.registry import KINDS, load_plugins, names
from loongforge.config.folders import configs_dir

_EXAMPLES = """
  loongforge components list
  loongforge components list --json
  loongforge components list --plugin my_projector.py"""
_FROM_HF = """
  loongforge components from-hf llava-1.5-7b-hf > my_llava.yaml
  loongforge train +recipe=my_llava.yaml data.train=my.jsonl"""


def run(argv: Sequence[str]) -> int:
    """Runs a sub-verb; returns the exit code."""
    verbs = {"list": "types and their ready-made sizes", "from-hf": "the recipe that matches a Hugging Face folder"}
    verb, rest = pick("components", argv, verbs)
    return _list(rest) if verb == "list" else _from_hf(rest)


def _from_hf(argv: Sequence[str]) -> int:
    from loongforge.cli.hf_recipe import recipe_tree
    from loongforge.config.saved import dump

    parser = Parser("components from-hf", "Prints the recipe that matches a checkpoint.", _FROM_HF)
    parser.add_argument("folder", metavar="DIR", help="config.json and safetensors")
    args = parser.parse(argv)
    tree = recipe_tree(Path(args.folder))
    tree["data"] = {"train": "???", **tree["data"]}
    print(f"# @package _global_\n#\n# {tree['name']}: the model in {args.folder}\n{dump(tree)}", end="")
    return 0


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
