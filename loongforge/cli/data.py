"""`loongforge data`: builds the embedded data sets."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.cli.parser import Parser, pick

_EXAMPLES = """
  loongforge data build digits_vqa
  loongforge data build pydoc_text --out data/texts"""


def run(argv: Sequence[str]) -> int:
    """Runs a sub-verb; returns the exit code."""
    _, rest = pick("data", argv, {"build": "write an embedded data set"})
    return _build(rest)


def _build(argv: Sequence[str]) -> int:
    parser = Parser("data build", "Writes an embedded data set; nothing is downloaded.", _EXAMPLES)
    parser.add_argument("name", help="digits_vqa or pydoc_text")
    parser.add_argument("--out", metavar="DIR", help="default: data/NAME")
    args = parser.parse(argv)
    from loongforge.data.builtin import build

    print(f"{args.name} is in {build(args.name, args.out)}")
    return 0
