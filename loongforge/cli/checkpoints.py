"""What `eval` and `generate` have in common: the recipe of a checkpoint, on processes of its own."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loongforge.cli.parser import Parser
from loongforge.config.schema import Config, ParallelConfig


def add_checkpoint_options(parser: Parser) -> None:
    """`--checkpoint`, `--json`, and overrides of the run's recipe."""
    from loongforge.cli.recipe_args import add_overrides

    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a run (its latest checkpoint), a checkpoint or a HF folder"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    add_overrides(parser)


def checkpoint_config(args: argparse.Namespace) -> Config:
    """The recipe that a checkpoint was trained with, under the user's overrides.

    Raises:
        UserError: no whole checkpoint there, or an override that is wrong.
    """
    from loongforge.checkpoint.lifecycle import resolve
    from loongforge.cli.recipe_args import load_recipe
    from loongforge.config.overrides import quoted
    from loongforge.config.saved import load_config

    if (Path(args.checkpoint) / "config.json").is_file():
        return _hf_config(args)
    saved = resolve(Path(args.checkpoint)).path / "config.yaml"
    tree = load_config(saved)  # a clear message where a later loongforge wrote it
    overrides = [f"recipe={quoted(str(saved))}", *_one_process(tree), *args.overrides]
    return load_recipe(argparse.Namespace(overrides=overrides, config_dir=args.config_dir)).config


def _hf_config(args: argparse.Namespace) -> Config:
    """The recipe of a Hugging Face folder, in the type of its weights."""
    from loongforge.cli.hf_recipe import recipe_tree
    from loongforge.cli.recipe_args import load_recipe
    from loongforge.config.overrides import quoted
    from loongforge.config.saved import save_config

    tree = recipe_tree(Path(args.checkpoint), name="checkpoint")
    tree["data"]["train"] = "none"
    tree["trainer"]["precision"] = "fp32"
    with tempfile.TemporaryDirectory(prefix="loongforge-") as folder:
        saved = Path(folder) / "recipe.yaml"
        save_config(tree, saved)
        overrides = [f"recipe={quoted(str(saved))}", "launcher.nproc=1", *args.overrides]
        return load_recipe(argparse.Namespace(overrides=overrides, config_dir=args.config_dir)).config


def _one_process(tree: dict[str, Any]) -> list[str]:
    """Whatever the run used: what is asked of its checkpoints is small. The user's overrides come after these."""
    neutral = ", ".join(f"{key}: {json.dumps(value)}" for key, value in asdict(ParallelConfig()).items())
    parts = [name for name, part in tree.get("model", {}).items() if isinstance(part, dict)]
    return ["launcher.nproc=1", *(f"model.{name}.parallel={{{neutral}}}" for name in parts)]


def run_on_checkpoint(entry: str, config: Config, **arguments: object) -> int:
    """Calls `entry(config, tree, **arguments)` in every process that the config wants; returns the exit code."""
    from loongforge.cli.processes import check_fit, find_processes, run_processes

    processes = find_processes(config)
    check_fit(config, processes.size)
    with tempfile.TemporaryDirectory(prefix="loongforge-") as logs:
        return run_processes(entry, config, processes, Path(logs), **arguments)
