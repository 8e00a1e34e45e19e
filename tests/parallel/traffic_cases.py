"""What a rank does in the tests of the traffic; imported by ranks, so megatron-core comes after the backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from loongforge.config.schema import Config  # noqa: E402
from loongforge.data.batch import IGNORE, Batch  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.model.vlm import VisionLanguageModel  # noqa: E402
from loongforge.parallel.exchange import Message  # noqa: E402
from loongforge.parallel.groups import Groups, make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402
from tests.parallel.traffic import Seen, Tables  # noqa: E402
from tests.parallel.traffic_faults import planted  # noqa: E402
from tests.support.ragged import Texts, part, ragged_batch, rows_of  # noqa: E402
from tests.support.tiny import IMAGE_TOKEN  # noqa: E402


@dataclass(frozen=True)
class Step:
    """A training step."""

    samples: tuple[Texts, ...]
    length: int
    seed: int = 0
    frozen: tuple[str, ...] = ()

    def batch(self) -> Batch:
        """All samples."""
        return ragged_batch(self.samples, self.seed, self.length)


def tables(config: Config, step: Step) -> Tables:
    """Everything that could travel in a step, as one process has it."""
    with joined_world(BACKEND):
        model = build_model(config, make_groups(Layout.from_model(config.model, 1), "gloo"), image_token=IMAGE_TOKEN)
        batch, spec = step.batch(), model.images
        assert spec is not None and model.vision is not None
        if not len(batch.images):
            widths = [spec.feature_shape[0] * spec.feature_shape[1], spec.row_size]
            return Tables(*(np.empty((0, width), np.float32) for width in widths for _ in range(2)))
        features = model.vision(batch.images).transpose(0, 1).detach().requires_grad_()
        rows = model.project(features).flatten(0, 1)
        rows.retain_grad()
        (model.losses(model(batch, rows), batch).sum() / (batch.labels != IGNORE).sum()).backward()
        shown = [features, features.grad, rows, rows.grad]
        return Tables(*(tensor.detach().flatten(1).numpy() for tensor in shown))


def train(config: Config, steps: list[Step], fault: str = "") -> list[Seen]:
    """What this rank saw in each step; every step starts from the first weights."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        return [_train(config, groups, step, fault) for step in steps]


def _train(config: Config, groups: Groups, step: Step, fault: str) -> Seen:
    for name in ("vision", "projector"):
        getattr(config.model, name).freeze = name in step.frozen
    model, batch, seen = build_model(config, groups, image_token=IMAGE_TOKEN), step.batch(), Seen()
    with planted(fault), _Wire(groups) as wire, _spied(model, seen):
        runner = Runner(model, groups, encode_window=config.trainer.encode_window, observe=_teller(seen))
        runner.train(_micro_batches(config, groups, batch), int((batch.labels != IGNORE).sum()))
    wire.report(seen)
    return seen


def _micro_batches(config: Config, groups: Groups, batch: Batch) -> dict[int, list[Batch]]:
    size, dp = config.trainer.micro_batch_size, groups.layout.dp
    return {
        replica: [part(batch, rows) for rows in rows_of(replica, dp, size, len(batch.ids))]
        for replica in groups.replicas
    }


def _teller(seen: Seen) -> Any:
    def observe(message: Message) -> None:
        seen.messages.append((message.way, message.source, message.target, message.rows, message.bytes))

    return observe


@contextmanager
def _spied(model: VisionLanguageModel, seen: Seen) -> Iterator[None]:
    """Notes what this rank encodes, projects and merges."""
    project, embed = model.project, model.embed

    def projected(features: torch.Tensor) -> torch.Tensor:
        rows = project(features)
        seen.projected.append(_plain(rows.flatten(0, 1)))
        return rows

    def embedded(tokens: torch.Tensor, image_rows: torch.Tensor | None) -> torch.Tensor:
        seen.merged.append(_plain(image_rows) if image_rows is not None else None)
        return embed(tokens, image_rows)

    if model.vision is not None:
        model.vision.register_forward_hook(lambda *call: seen.encoded.append(_plain(call[-1].transpose(0, 1))))
    with mock.patch.object(model, "project", projected), mock.patch.object(model, "embed", embedded):
        yield


def _plain(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().flatten(1).float().numpy().copy()


@dataclass(eq=False)
class _Wire(TorchDispatchMode):  # type: ignore[misc]
    """Everything that leaves and reaches this process outside the groups of single components.

    It stands where torch hands a message to the communication library, below all that the engine calls.
    """

    groups: Groups
    sent: list[tuple[int, int]] = field(default_factory=list)
    received: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    collectives: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        collections = [self.groups.of(name) for name in ("vision", "projector", "llm")]
        of_components = [value for found in collections if found is not None for value in vars(found).values()]
        self.inside = {group.group_name for group in of_components if isinstance(group, dist.ProcessGroup)}

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call.namespace == "c10d":
            group = dist.ProcessGroup.unbox(next(arg for arg in args if isinstance(arg, torch.ScriptObject)))
            if group.group_name not in self.inside:
                self._note(call.name().removeprefix("c10d::"), group, args)
        return call(*args, **(kwargs or {}))

    def _note(self, name: str, group: dist.ProcessGroup, args: Any) -> None:
        if name not in ("send", "recv_"):
            self.collectives.append(name)
            return
        (tensor,), peer = args[0], dist.get_process_group_ranks(group)[args[2]]
        if name == "send":
            self.sent.append((peer, tensor.numel() * tensor.element_size()))
        else:
            self.received.append((peer, tensor))

    def report(self, seen: Seen) -> None:
        """To be called when everything has arrived."""
        seen.sent, seen.collectives = self.sent, self.collectives
        seen.received = [(source, tensor.dim(), _plain(tensor)) for source, tensor in self.received]
