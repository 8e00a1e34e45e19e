"""`loongforge data`: builds, indexes, checks, shows and packs data."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from loongforge.cli.parser import Parser, pick

_EXAMPLES = """
  loongforge data build digits_vqa
  loongforge data build pydoc_text --out data/texts"""

_VERBS = {
    "build": "write an embedded data set",
    "index": "write where every sample lies and what it holds, once",
    "check": "read everything that a run would read, and say what is wrong with it",
    "preview": "show samples as the model sees them",
    "pack": "write the training data anew, as rows that are packed already",
}


def run(argv: Sequence[str]) -> int:
    """Runs a sub-verb; returns the exit code."""
    verb, rest = pick("data", argv, _VERBS)
    if verb == "build":
        return _build(rest)
    result: int = importlib.import_module(f"loongforge.cli.data_{verb}").run(rest)
    return result


def _build(argv: Sequence[str]) -> int:
    parser = Parser("data build", "Writes an embedded data set; nothing is downloaded.", _EXAMPLES)
    parser.add_argument("name", help="digits_vqa or pydoc_text")
    parser.add_argument("--out", metavar="DIR", help="default: data/NAME")
    args = parser.parse(argv)
    from loongforge.data.builtin import build

    print(f"{args.name} is in {build(args.name, args.out)}")
    return 0
