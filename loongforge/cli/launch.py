"""`loongforge launch`: starts a run on several nodes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from loongforge.cli import recipe_args
from loongforge.cli.parser import Parser

_EXAMPLES = """
  loongforge launch +recipe=llava_sft cluster=slurm cluster.nodes=4 cluster.slurm.partition=gpu --dry-run
  loongforge launch +recipe=llava_sft cluster=slurm cluster.nodes=4 run.dir=/shared/runs/first
  loongforge launch +recipe=llava_sft cluster=torchrun cluster.nodes=2 cluster.endpoint=node0 run.dir=/shared/runs/first
  loongforge launch +recipe=llava_sft cluster=pytorchjob cluster.nodes=4 cluster.kubernetes.image=me/loongforge:1"""


def run(argv: Sequence[str]) -> int:
    """Starts the run, or with `--dry-run` prints exactly what would be started; returns the exit code."""
    parser = Parser("launch", "Starts the run of a recipe on the nodes of `cluster`.", _EXAMPLES)
    recipe_args.add_overrides(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would run, start nothing")
    args = parser.parse(argv)
    from loongforge.cluster.environment import unset_site_variables
    from loongforge.cluster.launch import prepare, start

    config = recipe_args.load_recipe(args).config
    launch = prepare(config, args.overrides)
    assert config.cluster is not None
    for variable in unset_site_variables(config.cluster):
        print(f"note: {variable.name} is not set: {variable.why}; cluster.env.{variable.name}=...", file=sys.stderr)
    if args.dry_run:
        print(launch.text, end="")
        print(f"# goes to the standard input of: {' '.join(launch.command)}", file=sys.stderr)
        return 0
    return start(launch)
