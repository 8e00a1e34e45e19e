"""What `eval` and `generate` have in common: the recipe of a checkpoint, on processes of its own."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError
from loongforge.config.schema import Config

# One process, whatever the run used: what is asked here is small. Overrides come after these.
_ONE_PROCESS = [
    "launcher.nproc=1",
    "model.llm.parallel={tp: null, pp: 1, dp: null, sequence_parallel: false}",
]


def add_checkpoint_options(parser: Parser) -> None:
    """`--checkpoint`, `--json`, and overrides of the run's recipe."""
    from loongforge.cli.recipe_args import add_overrides

    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a run (its latest checkpoint) or a checkpoint"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    add_overrides(parser)


def recipe_of(checkpoint: Path) -> Path:
    """The `config.yaml` of the run that a checkpoint belongs to.

    Raises:
        UserError: no such folder, or it belongs to no run.
    """
    if not checkpoint.is_dir():
        raise UserError(f"--checkpoint {checkpoint}: no such folder")
    places = [checkpoint / "config.yaml", checkpoint.absolute().parent.parent / "config.yaml"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"--checkpoint {checkpoint} is neither a run nor a checkpoint of one: {places[0]} is missing")
    return found


def run_on_checkpoint(entry: str, args: argparse.Namespace, **arguments: object) -> int:
    """Calls `entry(config, tree, checkpoint=..., **arguments)` under the checkpoint's recipe; returns the exit code."""
    from loongforge.cli.processes import check_fit, find_processes, run_processes

    config = _config(args)
    processes = find_processes(config)
    check_fit(config, processes.size)
    with tempfile.TemporaryDirectory(prefix="loongforge-") as logs:
        checkpoint = str(Path(args.checkpoint).absolute())
        return run_processes(entry, config, processes, Path(logs), checkpoint=checkpoint, **arguments)


def _config(args: argparse.Namespace) -> Config:
    from loongforge.cli.recipe_args import load_recipe
    from loongforge.config.overrides import quoted
    from loongforge.config.saved import load_config

    saved = recipe_of(Path(args.checkpoint))
    load_config(saved)  # a clear message where a later loongforge wrote it
    overrides = [f"recipe={quoted(str(saved))}", *_ONE_PROCESS, *args.overrides]
    return load_recipe(argparse.Namespace(overrides=overrides, config_dir=args.config_dir)).config
