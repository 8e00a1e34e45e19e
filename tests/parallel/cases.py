"""What a rank does in the parity tests of layouts; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

from loongforge.config.saved import save_config, to_tree  # noqa: E402
from loongforge.config.schema import Config  # noqa: E402
from loongforge.model.balance import ExpertBalance  # noqa: E402
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


def train_balanced(config: Config, fault: str = "", pack: bool = False) -> tuple[Outcome, ExpertBalance]:
    """Like `train`, with the load of experts in the last step."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        with planted(fault, groups):
            trial = Trial(config, groups, pack=pack)
            outcome = trial.run(range(config.trainer.steps))
            assert trial.runner.experts is not None
            return outcome, trial.runner.experts.figures()


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
            save_config(to_tree(config), save / "config.yaml")
            save_training(save, trial.model, trial.optimizers, groups)
        return outcome, loaded


def step_with_nan(config: Config, component: str, rank: int) -> tuple[bool, bool, bool]:
    """A step in which one rank's gradient of a component is not a number.

    Returns:
        Whether this rank skipped it; whether its parameters stayed as they were; whether they move in a step after it.
    """
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        trial = Trial(config, groups)
        start, reduce = _bits(trial), trial.optimizers.reduce_gradients

        def reduce_with_nan() -> None:
            if world.rank == rank:
                next(iter(trial.model.components()[component].parameters())).main_grad.view(-1)[:1] = float("nan")
            reduce()

        with mock.patch.object(trial.optimizers, "reduce_gradients", reduce_with_nan):
            trial.learn(0)
        skipped = trial.optimizers.step(1e-3).skipped
        after_nan = _bits(trial)
        trial.learn(1)
        trial.optimizers.step(1e-3)
        return skipped, after_nan == start, _bits(trial) != start


def _bits(trial: Trial) -> dict[str, bytes]:
    return {name: param.detach().numpy().tobytes() for name, param in trial.model.named_parameters()}
