"""What a rank does in the parity tests of layouts; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402

from loongforge.components.sharding import gather_parameters, global_parameters  # noqa: E402
from loongforge.config.schema import Config  # noqa: E402
from loongforge.data.batch import IGNORE, Batch  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.checks import micro_batch_size  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.groups import Groups, make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import gather_lists, joined_world, sum_over_world  # noqa: E402
from loongforge.training.optimizer import Optimizers  # noqa: E402
from loongforge.training.schedule import learning_rate  # noqa: E402
from tests.parallel.faults import planted  # noqa: E402
from tests.support.batches import packed, split, uneven_batch  # noqa: E402
from tests.support.tiny import IMAGE_TOKEN, global_batch, micro_batches  # noqa: E402


def train(config: Config, fault: str = "", batches: str = "plain") -> dict[str, Any]:
    """Trains the tiny model.

    Args:
        config: Its recipe.
        fault: Planted, see `faults.py`.
        batches: `plain`, `uneven` or `packed` (the uneven samples, packed).

    Returns:
        Losses, norms, the first step's gradients of this pipeline stage, and replicas that differ.
    """
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        with planted(fault, groups):
            return _train(config, groups, _source(batches), fault)


def _source(kind: str) -> tuple[Callable[[int], Batch], Callable[..., list[Batch]]]:
    if kind == "plain":
        return global_batch, micro_batches

    def pack(whole: Batch, size: int, replica: int, layout: Layout) -> list[Batch]:
        parts = split(whole, size, replica, layout.dp)
        return [packed(part, layout.sequence_multiple) for part in parts] if kind == "packed" else parts

    return uneven_batch, pack


def _train(config: Config, groups: Groups, source: Any, fault: str) -> dict[str, Any]:
    whole_batch, parts_of = source
    model = build_model(config, groups, image_token=IMAGE_TOKEN)
    runner = Runner(model, groups, encode_window=config.trainer.encode_window)
    optimizers = Optimizers(config, model, groups)
    size = micro_batch_size(config, groups.layout)
    losses, norms, gradients, differing = [], [], {}, []
    for step in range(config.trainer.steps):
        whole = whole_batch(step)
        mine = {r: parts_of(whole, size, r, groups.layout) for r in groups.replicas}
        optimizers.clear_gradients()
        loss = runner.train(mine, _divisor(whole, mine, fault))
        optimizers.reduce_gradients()
        if step == 0:
            _gather_shards(optimizers)
            gradients = _gradients(model, groups)
        here = groups.place is not None and groups.place.tp == 0
        losses.append(sum_over_world(loss if here else torch.zeros_like(loss)).item())
        norms.append(optimizers.step(learning_rate(config.optimizer, step, config.trainer.steps)).grad_norm)
        differing += differing_replicas(model, groups)
    return {"losses": losses, "norms": norms, "gradients": gradients, "differing": sorted(set(differing))}


def _divisor(whole: Batch, mine: dict[int, list[Batch]], fault: str) -> int:
    if fault == "local count":
        return sum(int((batch.labels != IGNORE).sum()) for part in mine.values() for batch in part)
    return int((whole.labels != IGNORE).sum())


def _gather_shards(optimizers: Optimizers) -> None:
    """A distributed optimizer's rank has summed its own part of the gradients only: fetches the others'."""
    for part in optimizers.parts.values():
        for group in part.ddp.bucket_groups if part.ddp.ddp_config.use_distributed_optimizer else ():
            ranks = group.intra_distributed_optimizer_instance_group
            for bucket in group.buckets:
                shards = list(bucket.grad_data.chunk(ranks.size()))
                torch.distributed.all_gather(shards, shards[ranks.rank()].clone(), group=ranks)


def _gradients(model: Any, groups: Groups) -> dict[str, Any]:
    found = {}
    for name, part in model.components().items():
        if any(param.requires_grad for param in part.parameters()):
            full = gather_parameters(part, groups.of(name).tp, lambda param: param.main_grad)
            found.update({f"{name}.{key}": value.numpy() for key, value in full.items()})
    return found


def differing_replicas(model: Any, groups: Groups) -> list[str]:
    """Parameters of which two ranks hold different bits where they should hold the same. Collective over the world."""
    mine = []
    for component, part in model.components().items():
        tp = groups.of(component).tp.rank()
        for name, param in global_parameters(part):
            shard = tp if getattr(param, "tensor_model_parallel", False) else 0
            mine.append((f"{component}.{name} shard {shard}", zlib.crc32(param.detach().numpy().tobytes())))
    known: dict[str, int] = {}
    return [name for name, crc in gather_lists(mine) if known.setdefault(name, crc) != crc]
