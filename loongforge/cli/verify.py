"""`loongforge verify layout`: the recipe's layout, proven on this machine."""

from __future__ import annotations

import json
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from loongforge.cli.parser import Parser, check_least
from loongforge.config.errors import UserError, did_you_mean
from loongforge.config.schema import Config

WHAT = ("layout",)

_EXAMPLES = """
  loongforge verify layout +recipe=llava_sft launcher.nproc=4 model.llm.parallel.tp=2
  loongforge verify layout +recipe=llava_sft launcher.nproc=3 model.vision.parallel.ranks=[0]
  loongforge verify layout +recipe=llava_1_5_7b data.train=x data.tokenizer=y launcher.nproc=64"""


def run(argv: Sequence[str]) -> int:
    """Verifies; returns the exit code."""
    parser = Parser(
        "verify layout",
        "Trains a small copy of the recipe's model under its layout, on CPU processes of this machine, and in one\n"
        "process, and compares losses, gradients and parameters. Exit code 1 where they differ.",
        _EXAMPLES,
    )
    from loongforge.cli import recipe_args

    recipe_args.add_overrides(parser)
    parser.add_argument("--steps", type=int, default=25, metavar="N", help="optimizer steps of both (default: 25)")
    parser.add_argument(
        "--max-processes", type=int, default=8, metavar="N", help="larger layouts are cut to at most N (default: 8)"
    )
    parser.add_argument("--packed", action="store_true", help="the layout packs its samples, one process pads them")
    parser.add_argument("--json", action="store_true", help="for machines")
    if argv and argv[0] not in ("-h", "--help"):
        what, *argv = argv
        if what not in WHAT:
            raise UserError(f"'{what}' cannot be verified.{did_you_mean(what, WHAT)} Known: {', '.join(WHAT)}")
    args = parser.parse(argv)
    check_least(args, steps=1, max_processes=1)
    return _layout(recipe_args.load_recipe(args).config, args)


def _layout(config: Config, args: Namespace) -> int:
    from loongforge.cli.processes import check_fit, find_processes
    from loongforge.training.verify.run import verify
    from loongforge.training.verify.small import small_copy
    from loongforge.training.verify.text import report

    processes = find_processes(config)
    if processes.given is not None:
        raise UserError("verify starts processes of its own: run it outside of torchrun and Slurm")
    layout = check_fit(config, processes.size)
    small = small_copy(config, layout, steps=args.steps, limit=args.max_processes)
    if not args.json:
        print(f"{config.name} on {layout.world_size} processes: {args.steps} steps of a small copy, on CPU")
        if small.layout.world_size < layout.world_size:
            print(f"cut to {small.layout.world_size} processes (--max-processes {args.max_processes})")
        if small.layout.world_size == 1:
            print("one process is compared with itself: name a layout, with launcher.nproc=N")
    folder = Path(tempfile.mkdtemp(prefix="loongforge-verify-"))
    found = verify(small.config, small.layout.world_size, folder, pack=args.packed)
    if found is None:  # the launcher has named a log in there
        return 1
    shutil.rmtree(folder)
    if args.json:
        print(json.dumps({"world_size": small.layout.world_size, "layout": small.layout.describe(), **found.as_json()}))
    else:
        print(report(small.layout, found))
    return 1 if found.problems else 0
