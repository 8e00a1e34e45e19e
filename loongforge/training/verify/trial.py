"""What every rank of a trial does: train the small model, and keep what a comparison needs."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist

from loongforge.components.llm.base import LLMConfig
from loongforge.components.sharding import gather_parameters, global_parameters
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import Config
from loongforge.data.batch import IGNORE, Batch
from loongforge.model.assembly import build_model
from loongforge.model.checks import micro_batch_size
from loongforge.model.execution import Runner
from loongforge.model.flops import image_tokens
from loongforge.model.vlm import VisionLanguageModel
from loongforge.parallel.groups import Groups
from loongforge.parallel.session import gather_lists, sum_over_world
from loongforge.training.optimizer import Optimizers
from loongforge.training.schedule import learning_rate
from loongforge.training.verify.outcome import Outcome
from loongforge.training.verify.synthetic import IMAGE_TOKEN, SyntheticData, packed
from loongforge.training.weights import load_initial_weights


def synthetic_data(config: Config) -> SyntheticData:
    """Batches for a small recipe."""
    llm, vision = config.model.llm, config.model.vision
    assert isinstance(llm, LLMConfig)
    return SyntheticData(
        samples=config.trainer.global_batch_size,
        vocab_size=llm.vocab_size,
        image_size=vision.image_size if isinstance(vision, VisionConfig) else 0,
        tokens_per_image=image_tokens(config.model),
    )


class Trial:
    """Trains a small recipe on this rank.

    Args:
        config: From `small_recipe`.
        groups: Of the layout.
        pack: Pack the samples of each micro-batch into one row.
    """

    def __init__(self, config: Config, groups: Groups, *, pack: bool = False) -> None:
        self.config, self.groups, self.pack = config, groups, pack
        self.data = synthetic_data(config)
        self.model = build_model(config, groups, image_token=IMAGE_TOKEN if config.model.vision is not None else None)
        self.started = load_initial_weights(config, self.model, groups)
        self.runner = Runner(self.model, groups, encode_window=config.trainer.encode_window)
        self.optimizers = Optimizers(config, self.model, groups)

    def run(self, steps: Iterable[int]) -> Outcome:
        """Trains some steps. Collective over the world."""
        outcome, frozen = Outcome(), frozen_parameters(self.model)
        for number, step in enumerate(steps):
            outcome.losses.append(self.learn(step))
            if number == 0:
                gather_gradient_shards(self.optimizers)
                outcome.gradients = self._gradients()
            rate = learning_rate(self.config.optimizer, step, self.config.trainer.steps)
            outcome.norms.append(self.optimizers.step(rate).grad_norm)
            outcome.differing += differing_replicas(self.model, self.groups)
        outcome.parameters = full_parameters(self.model, self.groups)
        outcome.moved = [name for name, bits in frozen_parameters(self.model).items() if bits != frozen[name]]
        outcome.differing = sorted(set(outcome.differing))
        return outcome

    def learn(self, step: int) -> float:
        """Gradients of a step, reduced; returns its loss, summed over the world. Collective over the world."""
        whole = self.data.global_batch(step, self.groups.layout.sequence_multiple)
        self.optimizers.clear_gradients()
        loss = self.runner.train(self._batches(whole), int((whole.labels != IGNORE).sum()))
        self.optimizers.reduce_gradients()
        place = self.groups.place
        return sum_over_world(loss if place is not None and place.tp == 0 else torch.zeros_like(loss)).item()

    def _batches(self, whole: Batch) -> dict[int, list[Batch]]:
        layout = self.groups.layout
        size = micro_batch_size(self.config, layout)
        parts = {r: self.data.micro_batches(whole, size, r, layout.dp) for r in self.groups.replicas}
        made = {r: [packed(batch) for batch in part] for r, part in parts.items()} if self.pack else parts
        return {r: [batch.to(self.runner.device) for batch in part] for r, part in made.items()}

    def _gradients(self) -> dict[str, np.ndarray]:
        found = {}
        for name, part in self.model.components().items():
            if any(param.requires_grad for param in part.parameters()):
                groups = self.groups.of(name)
                assert groups is not None
                full = gather_parameters(part, groups.tp, _gradient)
                found.update({f"{name}.{key}": value.cpu().numpy() for key, value in full.items()})
        return found


def _gradient(param: torch.nn.Parameter) -> torch.Tensor | None:
    return param.main_grad if param.requires_grad else None  # type: ignore[attr-defined]


def gather_gradient_shards(optimizers: Optimizers) -> None:
    """A distributed optimizer's rank has summed its own part of the gradients only: fetches the others'."""
    for part in optimizers.parts.values():
        if not part.ddp.ddp_config.use_distributed_optimizer:
            continue
        for group in part.ddp.bucket_groups + part.ddp.expert_parallel_bucket_groups:
            ranks = group.intra_distributed_optimizer_instance_group
            for bucket in group.buckets:
                shards = list(bucket.grad_data.chunk(ranks.size()))
                dist.all_gather(shards, shards[ranks.rank()].clone(), group=ranks)


def full_parameters(model: VisionLanguageModel, groups: Groups) -> dict[str, np.ndarray]:
    """Full parameters of this rank's parts, by component and global name. Collective over tensor-parallel groups."""
    found = {}
    for name, part in model.components().items():
        collection = groups.of(name)
        assert collection is not None
        full = gather_parameters(part, collection.tp)
        found.update({f"{name}.{key}": value.float().cpu().numpy() for key, value in full.items()})
    return found


def frozen_parameters(model: VisionLanguageModel) -> dict[str, int]:
    """Checksums of this rank's parameters that take no gradient."""
    return {
        f"{component}.{name}": _checksum(param)
        for component, part in model.components().items()
        for name, param in global_parameters(part)
        if not param.requires_grad
    }


def _checksum(param: torch.Tensor) -> int:
    return zlib.crc32(param.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())


def differing_replicas(model: VisionLanguageModel, groups: Groups) -> list[str]:
    """Parameters of which two ranks hold different bits where they should hold the same. Collective over the world."""
    mine = []
    for component, part in model.components().items():
        collection = groups.of(component)
        assert collection is not None
        for name, param in global_parameters(part):
            shard = collection.tp.rank() if getattr(param, "tensor_model_parallel", False) else 0
            mine.append((f"{component}.{name}", shard, _checksum(param)))
    known: dict[tuple[str, int], int] = {}
    return [name for name, shard, crc in gather_lists(mine) if known.setdefault((name, shard), crc) != crc]
