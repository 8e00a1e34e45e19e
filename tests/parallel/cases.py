"""What a rank does in the parity tests of layouts; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from pathlib import Path

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

from loongforge.config.schema import Config  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402
from loongforge.training.state import load_training, save_training  # noqa: E402
from loongforge.training.verify.trial import Outcome, Trial, full_parameters  # noqa: E402
from tests.parallel.faults import planted  # noqa: E402


def train(config: Config, fault: str = "", pack: bool = False) -> Outcome:
    """Trains the tiny model under its layout.

    Args:
        config: Its recipe.
        fault: Planted, see `faults.py`.
        pack: Pack the samples of each micro-batch.
    """
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        with planted(fault, groups):
            return Trial(config, groups, pack=pack).run(range(config.trainer.steps))


def train_between(config: Config, steps: range, load: Path | None, save: Path | None) -> tuple[Outcome, dict]:
    """Trains some steps of a run, from a checkpoint and to one; returns also the parameters as they were loaded."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        if load is not None:
            config.trainer.seed += 1  # other first weights than the checkpoint's
        trial = Trial(config, groups)
        if load is not None:
            load_training(load, trial.model, trial.optimizers, groups)
        loaded = full_parameters(trial.model, groups)
        outcome = trial.run(steps)
        if save is not None:
            save_training(save, trial.model, trial.optimizers, groups)
        return outcome, loaded
