"""What a rank does in the tests of checkpoints between layouts; imported by ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

from loongforge.components.sharding import gather_parameters  # noqa: E402
from loongforge.config.schema import Config  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.checks import micro_batch_size  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world, sum_over_world  # noqa: E402
from loongforge.training.optimizer import Optimizers  # noqa: E402
from loongforge.training.schedule import learning_rate  # noqa: E402
from loongforge.training.state import load_training, save_training  # noqa: E402
from tests.support.batches import split, uneven_batch  # noqa: E402
from tests.support.tiny import IMAGE_TOKEN  # noqa: E402


def train_between(
    config: Config, first: int, last: int, *, load: Path | None = None, save: Path | None = None
) -> dict[str, Any]:
    """Trains steps `first` .. `last - 1`, from a checkpoint and to one.

    Returns:
        Losses, and this rank's full parameters as they were loaded and as they were saved.
    """
    with joined_world(BACKEND) as world:
        layout = Layout.from_model(config.model, world.size)
        groups = make_groups(layout, "gloo")
        if load is not None:
            config.trainer.seed += 1  # other first weights than the checkpoint's
        model = build_model(config, groups, image_token=IMAGE_TOKEN)
        runner, optimizers = Runner(model, groups), Optimizers(config, model, groups)
        if load is not None:
            load_training(load, model, optimizers, groups)
        loaded = _parameters(model, groups)
        losses = []
        size = micro_batch_size(config, layout)
        for step in range(first, last):
            whole = uneven_batch(step)
            optimizers.clear_gradients()
            mine = {r: split(whole, size, r, layout.dp) for r in groups.replicas}
            loss = runner.train(mine, int((whole.labels != -100).sum()))
            optimizers.reduce_gradients()
            here = groups.place is not None and groups.place.tp == 0
            losses.append(sum_over_world(loss if here else loss * 0).item())
            optimizers.step(learning_rate(config.optimizer, step, config.trainer.steps))
        if save is not None:
            save_training(save, model, optimizers, groups)
        return {"losses": losses, "loaded": loaded, "saved": _parameters(model, groups)}


def _parameters(model: Any, groups: Any) -> dict[str, Any]:
    return {
        f"{name}.{key}": value.numpy()
        for name, part in model.components().items()
        for key, value in gather_parameters(part, groups.of(name).tp).items()
    }
