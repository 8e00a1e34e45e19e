"""`loongforge preflight`: checks the nodes of a cluster before a run."""

from __future__ import annotations

import json
from collections.abc import Sequence

from loongforge.cli import recipe_args
from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError

_EXAMPLES = """
  torchrun --nnodes 2 --nproc-per-node 8 ... -m loongforge preflight +recipe=llava_sft run.dir=/shared/runs/first"""


def run(argv: Sequence[str]) -> int:
    """Checks versions, devices, a collective and the shared run folder on every rank; returns the exit code."""
    parser = Parser("preflight", "Checks the nodes of a cluster, under torchrun or Slurm.", _EXAMPLES)
    recipe_args.add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="one object for each rank")
    args = parser.parse(argv)
    config = recipe_args.load_recipe(args).config
    if config.run.dir is None:
        raise UserError("run.dir is missing: the folder that all nodes share")
    from loongforge.training.world import join_given_world

    world = join_given_world()
    from loongforge.cluster.preflight import as_json, preflight, table

    nodes = preflight(config)
    if world is None or world.rank == 0:
        print(json.dumps(as_json(nodes)) if args.json else f"preflight: fit to run\n{table(nodes)}", flush=True)
    return 0
