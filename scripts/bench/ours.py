"""The training step of loongforge as benchmarks take it. Import it after the backend's `activate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rows import IMAGE_TOKEN

from loongforge.config.schema import Config
from loongforge.data.batch import IGNORE, Batch
from loongforge.model.assembly import build_model
from loongforge.model.execution import Runner
from loongforge.training.optimizer import Optimizers
from loongforge.training.weights import load_initial_weights


class Ours:
    """The step of loongforge's trainer."""

    def __init__(self, config: Config, groups: Any) -> None:
        self.model = build_model(config, groups, image_token=IMAGE_TOKEN)
        load_initial_weights(config, self.model, groups)
        self.runner, self.rate = Runner(self.model, groups), config.optimizer.lr
        self.optimizers = Optimizers(config, self.model, groups)

    def step(self, *batches: Batch) -> None:
        """Forward, backward, clip, update."""
        self.gradients(batches)
        self.optimizers.step(self.rate)

    def gradients(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Forward and backward pass of a step's micro-batches; returns the mean loss of its label tokens."""
        labels = sum(int((batch.labels != IGNORE).sum()) for batch in batches)
        self.optimizers.clear_gradients()
        loss = self.runner.train({0: [batch.to(self.runner.device) for batch in batches]}, labels)
        self.optimizers.reduce_gradients()
        return loss
