"""`loongforge plan`: would this recipe run, on what, and how fast. No weights and no processes."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loongforge.cli.parser import Parser, check_least
from loongforge.config.errors import UserError
from loongforge.config.schema import Config

if TYPE_CHECKING:
    from loongforge.planning.device import Device

_SHOWN = 12

_EXAMPLES = """
  loongforge plan +recipe=llava_sft
  loongforge plan +recipe=llava_sft launcher.nproc=4 model.llm.parallel.tp=2 --json
  loongforge plan +recipe=llava_1_5_7b data.train=x data.tokenizer=y --world 8 --device h100 --search
  loongforge plan +recipe=llava_1_5_7b data.train=x data.tokenizer=y --world 64 --device h100 model.llm.parallel.pp=2
  loongforge plan +recipe=llava_sft launcher.nproc=4 --balance"""


def run(argv: Sequence[str]) -> int:
    """Checks a recipe and prints what it costs; returns the exit code."""
    from loongforge.cli import recipe_args

    parser = Parser(
        "plan",
        "Checks a recipe without running it, and predicts memory, traffic and time of a step: who holds what,\n"
        "what would fit, what would be faster.",
        _EXAMPLES,
    )
    recipe_args.add_overrides(parser)
    parser.add_argument("--world", type=int, metavar="N", help="ranks (default: those that `train` would start)")
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu (measured now), a800, h100, h200, p800, or a YAML file"
    )
    parser.add_argument("--tokens-per-sample", type=int, metavar="N", help="default: the longest sample of the recipe")
    parser.add_argument("--images-per-sample", type=float, metavar="X", help="mean (default: 1)")
    parser.add_argument("--search", action="store_true", help="rank the legal layouts instead")
    parser.add_argument(
        "--balance", action="store_true", help="read the first samples and predict what balance.mode gains"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    args = parser.parse(argv)
    check_least(args, world=1, tokens_per_sample=1, images_per_sample=0)
    config = recipe_args.load_recipe(args).config
    _check_kernels(config)
    return (_search if args.search else _plan)(config, args)


def _check_kernels(config: Config) -> None:
    wanted = asdict(config.kernels)
    if set(wanted.values()) != {"auto"}:
        from loongforge.kernels.backend import installed
        from loongforge.kernels.registry import check_known

        check_known(wanted, installed().values())


def _plan(config: Config, args: Namespace) -> int:
    from loongforge.cli.processes import check_fit
    from loongforge.planning.advice import advise
    from loongforge.planning.report import report
    from loongforge.planning.text import plan_text
    from loongforge.planning.workload import Costs, Workload

    world = _world(config, args)
    if args.balance:
        from loongforge.cli.plan_balance import plan_balance

        return plan_balance(config, world, as_json=args.json)
    layout = check_fit(config, world)
    costs = Costs(config, Workload.from_recipe(config, tokens=args.tokens_per_sample, images=args.images_per_sample))
    device = _device(config, world, args)
    plan = report(costs, layout, device) | {"advice": advise(costs, layout, device)}
    if layout.dp > 1:
        plan["balance"] = _balance(config, world, args)
    print(json.dumps(plan) if args.json else plan_text(plan))
    return 0


def _balance(config: Config, world: int, args: Namespace) -> dict[str, Any]:
    """What balancing gains, where an index of the data tells, or the command that finds out."""
    from loongforge.cli.plan_balance import expected_gain

    found = expected_gain(config, world)
    if found is not None:
        return found
    options = [word for folder in args.config_dir for word in ("-cd", folder)]
    options += ["--world", str(args.world)] if args.world else []
    return {"command": shlex.join(["loongforge", "plan", *args.overrides, *options, "--balance"])}


def _search(config: Config, args: Namespace) -> int:
    from loongforge.planning.report import found_layout
    from loongforge.planning.search import search
    from loongforge.planning.text import search_text
    from loongforge.planning.workload import Workload

    world = _world(config, args)
    _check_components(config)
    workload = Workload.from_recipe(config, tokens=args.tokens_per_sample, images=args.images_per_sample)
    device = _device(config, world, args)
    found = [found_layout(config, one, device) for one in search(config, world, workload, device)]
    if not found:
        raise UserError(_nothing(config, world))
    print(json.dumps({"processes": world, "layouts": found}) if args.json else search_text(found, _SHOWN))
    return 0


def _check_components(config: Config) -> None:
    """What is wrong with the model under any layout."""
    from loongforge.model.checks import model_problems
    from loongforge.parallel.grid import Grid
    from loongforge.parallel.layout import Layout

    found = model_problems(config.model, Layout(1, Grid((0,))))
    if found:
        raise UserError("The model cannot be built:\n" + "\n".join(f"  - {line}" for line in found))


def _world(config: Config, args: Namespace) -> int:
    from loongforge.cli.processes import find_processes

    return int(args.world) if args.world else find_processes(config).size


def _device(config: Config, world: int, args: Namespace) -> Device:
    from loongforge.components.llm.base import LLMConfig
    from loongforge.planning.device import load_device
    from loongforge.training.launcher import default_threads

    llm = config.model.llm
    assert isinstance(llm, LLMConfig)
    threads = config.trainer.threads or default_threads(world)
    return load_device(args.device, nproc=world, threads=threads, width=llm.hidden_size)


def _nothing(config: Config, world: int) -> str:
    batch = config.trainer.global_batch_size
    return f"no layout of {world} processes divides the model and trainer.global_batch_size={batch}; change either"
