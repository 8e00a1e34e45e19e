"""Random steps for the tests of ragged batches, and what a rank does with them; imported by ranks."""

from __future__ import annotations

import random
from dataclasses import dataclass

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402

from loongforge.config.schema import Config  # noqa: E402
from loongforge.data.batch import IGNORE, Batch  # noqa: E402
from loongforge.model.assembly import build_model  # noqa: E402
from loongforge.model.execution import Runner  # noqa: E402
from loongforge.parallel.groups import Groups, make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world, sum_over_world  # noqa: E402
from loongforge.training.optimizer import Optimizers  # noqa: E402
from loongforge.training.schedule import learning_rate  # noqa: E402
from loongforge.training.verify.synthetic import packed  # noqa: E402
from tests.parallel.faults import planted  # noqa: E402
from tests.support.ragged import Texts, num_tokens, part, ragged_batch, rows_of  # noqa: E402
from tests.support.tiny import IMAGE_TOKEN  # noqa: E402

KINDS = ("any", "any", "any", "one replica", "one micro-batch", "one sample", "none")
"""Which samples of a step may have images."""


@dataclass(frozen=True)
class Run:
    """Random steps."""

    seed: int
    steps: int
    dp: int
    """LLM replicas that they are divided for."""
    pack: bool = False
    """Pack the samples of each micro-batch."""


@dataclass(frozen=True)
class RaggedStep:
    """A global batch and how it is divided: a pure function of seed, number and the number of LLM replicas."""

    samples: tuple[Texts, ...]
    size: int
    """Samples of a micro-batch."""
    kind: str

    @classmethod
    def draw(cls, seed: int, number: int, dp: int) -> RaggedStep:
        """Step `number` of a run."""
        dice = random.Random(f"{seed}-{number}-{dp}")
        kind, size, micro_batches = dice.choice(KINDS), dice.randint(1, 3), dice.randint(1, 3)
        total = size * micro_batches * dp
        only = dice.randrange(total)
        may = {
            "one replica": lambda i: i // size % dp == only // size % dp,
            "one micro-batch": lambda i: i // size == only // size,
            "one sample": lambda i: i == only,
            "none": lambda i: False,
        }.get(kind, lambda i: True)
        counts = [dice.choice((0, 0, 1, 1, 2, 5)) if may(i) else 0 for i in range(total)]
        texts = ((*(dice.randint(0, 4) for _ in range(count)), dice.randint(2, 20)) for count in counts)
        return cls(tuple(texts), size, kind)

    def length(self, rows: list[int], multiple: int) -> int:
        """Tokens of the longest of some samples, padded."""
        return -(-max(num_tokens(self.samples[row]) for row in rows) // multiple) * multiple


def train_ragged(config: Config, run: Run, fault: str = "") -> list[tuple[float, float]]:
    """Loss and gradient norm of each step; one process takes each step as one micro-batch."""
    with joined_world(BACKEND) as world:
        groups = make_groups(Layout.from_model(config.model, world.size), "gloo")
        with planted(fault, groups):
            return _train(config, run, groups)


def _train(config: Config, run: Run, groups: Groups) -> list[tuple[float, float]]:
    model = build_model(config, groups, image_token=IMAGE_TOKEN)
    runner = Runner(model, groups, encode_window=config.trainer.encode_window)
    optimizers, found = Optimizers(config, model, groups), []
    for number in range(run.steps):
        step = RaggedStep.draw(run.seed, number, run.dp)
        whole = ragged_batch(step.samples, run.seed + number, step.length(list(range(len(step.samples))), 24))
        optimizers.clear_gradients()
        micro_batches = _divided(step, whole, groups, run.pack) if groups.layout.world_size > 1 else {0: [whole]}
        mine = runner.train(micro_batches, int((whole.labels != IGNORE).sum()))
        optimizers.reduce_gradients()
        loss = sum_over_world(mine if groups.place and groups.place.tp == 0 else torch.zeros_like(mine)).item()
        outcome = optimizers.step(learning_rate(config.optimizer, number, run.steps))
        found.append((loss, outcome.grad_norm))
    return found


def _divided(step: RaggedStep, whole: Batch, groups: Groups, pack: bool) -> dict[int, list[Batch]]:
    """Every replica's micro-batches are as long as its own samples need."""
    found = {}
    for replica in groups.replicas:
        parts = rows_of(replica, groups.layout.dp, step.size, len(step.samples))
        length = step.length([row for rows in parts for row in rows], groups.layout.sequence_multiple)
        found[replica] = [part(whole, rows, length) for rows in parts]
    return {r: [packed(batch) for batch in batches] for r, batches in found.items()} if pack else found
