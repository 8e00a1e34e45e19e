"""What `eval`, `generate` and `chat` have in common: the recipe of a checkpoint, on processes of its own."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError
from loongforge.config.schema import Config, ParallelConfig


def add_checkpoint_options(parser: Parser) -> None:
    """`--checkpoint`, and overrides of the run's recipe."""
    from loongforge.cli.recipe_args import add_overrides

    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a run (its latest checkpoint), a checkpoint or a HF folder"
    )
    add_overrides(parser)


def add_sampling_options(parser: Parser) -> None:
    """How answers are made."""
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: the recipe's trainer.max_new_tokens")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw among tokens of this probability")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among so many tokens; 0 (default): all")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same answers, on any layout")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; repeatable")


def sampling_arguments(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """These options for the entry points.

    Raises:
        UserError: a value out of its range.
    """
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: allowed: 1 or more")
    sampling = dict(temperature=args.temperature, top_p=args.top_p, top_k=args.top_k, seed=args.seed)
    _check_sampling(**sampling)
    longest = args.max_new_tokens or config.trainer.max_new_tokens
    return {"max_new_tokens": longest, "sampling": sampling, "stop": args.stop}


def _check_sampling(temperature: float, top_p: float, top_k: int, seed: int) -> None:
    for flag, value, right, allowed in (
        ("--temperature", temperature, 0 <= temperature < float("inf"), "0 (the likeliest token) or more"),
        ("--top-p", top_p, 0 < top_p <= 1, "more than 0, up to 1"),
        ("--top-k", top_k, top_k >= 0, "0 (all) or more"),
        ("--seed", seed, 0 <= seed < 2**63, "0 or more"),
    ):
        if not right:
            raise UserError(f"{flag} {value}: allowed: {allowed}")


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
    check_fit(config, processes.size, trains=False)
    with tempfile.TemporaryDirectory(prefix="loongforge-") as logs:
        return run_processes(entry, config, processes, Path(logs), **arguments)
