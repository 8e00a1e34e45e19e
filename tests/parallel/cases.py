"""What a rank does in the parity tests of layouts; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from typing import Any

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402

from loongforge.components.sharding import gather_parameters  # noqa: E402
from loongforge.config.schema import Config  # noqa: E402
from loongforge.data.batch import IGNORE  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world, sum_over_world  # noqa: E402
from loongforge.training.optimizer import Optimizers  # noqa: E402
from loongforge.training.schedule import learning_rate  # noqa: E402
from tests.support.tiny import IMAGE_TOKEN, global_batch, micro_batches  # noqa: E402


def train(config: Config, fault: str = "") -> dict[str, Any]:
    """Trains the tiny model; returns losses, norms, and the first step's gradients of this pipeline stage."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        return _train(config, groups, fault)


def _train(config: Config, groups: Any, fault: str) -> dict[str, Any]:
    model = build_model(config, groups, image_token=IMAGE_TOKEN)
    runner, optimizers = Runner(model, groups), Optimizers(config, model, groups)
    losses, norms, gradients = [], [], {}
    for step in range(config.trainer.steps):
        whole = global_batch(step)
        mine = {r: micro_batches(whole, config.trainer.micro_batch_size, r, groups.layout.dp) for r in groups.replicas}
        optimizers.clear_gradients()
        loss = runner.train(mine, _divisor(whole, mine, fault))
        if fault != "no reduction":
            optimizers.reduce_gradients()
        if step == 0:
            gradients = _gradients(model, groups)
        total = sum_over_world(loss if groups.place and groups.place.tp == 0 else torch.zeros_like(loss)).item()
        outcome = optimizers.step(learning_rate(config.optimizer, step, config.trainer.steps))
        losses.append(total)
        norms.append(outcome.grad_norm)
    return {"losses": losses, "norms": norms, "gradients": gradients}


def _divisor(whole: Any, mine: dict[int, list[Any]], fault: str) -> int:
    if fault == "local count":
        return sum(int((batch.labels != IGNORE).sum()) for part in mine.values() for batch in part)
    return int((whole.labels != IGNORE).sum())


def _gradients(model: Any, groups: Any) -> dict[str, Any]:
    found = {}
    for name, part in model.components().items():
        if any(param.requires_grad for param in part.parameters()):
            full = gather_parameters(part, groups.of(name).tp, lambda param: param.main_grad)
            found.update({f"{name}.{key}": value.numpy() for key, value in full.items()})
    return found
