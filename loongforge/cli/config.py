"""`loongforge config`: shows a recipe as it is composed."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.cli.parser import Parser, pick

_EXAMPLES = """
  loongforge config show +recipe=llava_sft
  loongforge config show +recipe=llava_sft llm=qwen3_tiny --package model.llm
  loongforge config show +recipe=llava_sft --info defaults"""


def run(argv: Sequence[str]) -> int:
    """Runs a sub-verb; returns the exit code."""
    _, rest = pick("config", argv, {"show": "print the composed, checked and resolved config"})
    return _show(rest)


def _show(argv: Sequence[str]) -> int:
    from loongforge.cli import recipe_args

    parser = Parser("config show", "Prints a recipe composed, checked and resolved, defaults included.", _EXAMPLES)
    recipe_args.add_overrides(parser)
    recipe_args.add_show_options(parser)
    args = parser.parse(recipe_args.separate_info(argv))
    args.resolve = args.resolve or args.cfg is None
    args.cfg = args.cfg or "job"
    return recipe_args.show(args)
