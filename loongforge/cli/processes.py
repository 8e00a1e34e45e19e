"""From a checked recipe to running processes: this one, many of our own, or those of torchrun or Slurm."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.parallel.layout import Layout
from loongforge.training.world import World, join_given_world


@dataclass(frozen=True)
class Processes:
    """Who runs the job."""

    size: int
    given: World | None
    """The world of torchrun or Slurm that this process belongs to."""

    @property
    def is_first(self) -> bool:
        """Whether this process decides for all (folders, times)."""
        return self.given is None or self.given.rank == 0


def find_processes(config: Config) -> Processes:
    """The given world, or as many processes as the recipe or the backend wants.

    Raises:
        UserError: the backend has no device here, or the given world is broken.
    """
    from loongforge.kernels.backend import select

    world = join_given_world()
    if world is not None:
        return Processes(world.size, world)
    return Processes(config.launcher.nproc or select(config.backend).device_count(), None)


def check_fit(config: Config, size: int, *, trains: bool = True) -> Layout:
    """The layout on so many ranks, after checking that the model fits it, and where it trains the batch.

    Raises:
        UserError: everything that does not fit.
    """
    from loongforge.model.checks import check_model

    try:
        layout = Layout.from_model(config.model, size)
    except UserError as error:
        raise UserError(f"{error}{_undividable(config)}{_nearest(config, size)}") from error
    try:
        check_model(config, layout, trains=trains)
    except UserError as error:
        raise UserError(f"{error}{_nearest(config, size)}") from error
    return layout


def _undividable(config: Config) -> str:
    """What in the LLM its parallel sizes do not divide, on whatever number of processes."""
    from loongforge.components.llm.base import LLMConfig

    llm = config.model.llm
    assert isinstance(llm, LLMConfig)
    return "".join(f"\n  - model.llm.{line}" for line in llm.problems(llm.parallel.tp or 1, llm.parallel.pp))


def _nearest(config: Config, size: int) -> str:
    """Legal layouts of as many processes, where the recipe's is not one."""
    from loongforge.planning.choices import nearest_choices, overrides

    model = config.model
    if (model.vision is None) != (model.projector is None):
        return ""
    lines = [f"\n  - {' '.join(overrides(config, wanted))}" for wanted in nearest_choices(config, size)]
    return f"\nNearest layouts of {size} process(es) that fit:{''.join(lines)}" if lines else ""


def run_processes(entry: str, config: Config, processes: Processes, log_dir: Path, **arguments: object) -> int:
    """Calls `entry(config, tree, **arguments)` in every process and returns the exit code."""
    from loongforge.config.saved import to_tree
    from loongforge.training.job import Job
    from loongforge.training.launcher import default_threads, launch
    from loongforge.training.rank_log import tee_output

    job = Job(entry, to_tree(config), dict(arguments))
    if processes.given is None and processes.size > 1:
        return launch(job, processes.size, log_dir, threads=config.trainer.threads)
    # Read when torch is first imported, which is later.
    os.environ.setdefault("OMP_NUM_THREADS", str(config.trainer.threads or default_threads(1)))
    with tee_output(log_dir / "rank_0.log") if processes.given is None else nullcontext():
        return job.run()


def writable(folder: Path, key: str) -> Path:
    """Makes a folder and proves that it can be written to.

    Raises:
        UserError: it cannot.
    """
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{key}={folder} cannot be written: {reason}; choose another with {key}=DIR") from error
    return folder
