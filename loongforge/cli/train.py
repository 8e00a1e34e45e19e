"""`loongforge train`: trains the model of a recipe."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from loongforge.cli.parser import Parser
from loongforge.config.errors import UserError
from loongforge.config.schema import Config

_EXAMPLES = """
  loongforge train +recipe=llava_sft
  loongforge train +recipe=llava_sft llm=qwen3_tiny optimizer.lr=3e-4 trainer.steps=2000
  loongforge train +recipe=llava_sft launcher.nproc=4 model.llm.parallel.tp=2
  loongforge train +recipe=my/recipe.yaml run.dir=runs/first_try
  loongforge train +recipe=llava_sft run.dir=runs/first_try             goes on where it stopped
  loongforge train -m +recipe=llava_sft optimizer.lr=3e-4,5e-4,8e-4     one job for each
  loongforge train +recipe=llava_sft --cfg job --resolve                shows the config
  torchrun --nproc-per-node 4 -m loongforge train +recipe=llava_sft     joins torchrun's processes"""


def run(argv: Sequence[str]) -> int:
    """Trains, or with `-m` trains once for each combination; returns the exit code."""
    from loongforge.cli import recipe_args

    parser = Parser("train", "Trains the model of a recipe.", _EXAMPLES)
    recipe_args.add_overrides(parser)
    recipe_args.add_show_options(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="run every combination of a=1,2 b=range(1,4) ...")
    args = parser.parse(recipe_args.separate_info(argv))
    if args.multirun:
        from loongforge.cli.multirun import run_all

        return run_all(args)
    if args.cfg or args.info:
        return recipe_args.show(args)
    return train(recipe_args.load_recipe(args).config)


def train(config: Config) -> int:
    """Trains as a valid config says; returns the exit code."""
    from loongforge.cli.processes import check_fit, find_processes, run_processes

    processes = find_processes(config)
    check_fit(config, processes.size)
    is_new = config.run.dir is None
    if processes.is_first:
        config.run.dir = str(_run_dir(config))
    log_dir = Path(config.run.dir or ".") / "logs"
    try:
        return run_processes("loongforge.training.main:run", config, processes, log_dir)
    except UserError:
        if processes.is_first and is_new:
            _remove_unused(log_dir.parent)
        raise


def _remove_unused(run_dir: Path) -> None:
    """A folder of our own naming that a mistake has left without anything but logs."""
    if all(entry.name == "logs" for entry in run_dir.iterdir()):
        shutil.rmtree(run_dir)


def _run_dir(config: Config) -> Path:
    """The run's folder; a new one is never shared with a run that started in the same second."""
    from loongforge.cli.processes import writable

    if config.run.dir is not None:
        return writable(Path(config.run.dir), "run.dir")
    parent = writable(Path("runs") / config.name, "run.dir")
    name = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ["", *(f"-{i}" for i in range(2, 1000))]:
        try:
            (parent / f"{name}{suffix}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{name}{suffix}"
    raise AssertionError("a thousand runs in one second")
