"""Stages that train: a tiny vision-language model learns on the backend as it does on CPU, and goes on as it would."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from loongforge.components.llm.llama.config import LlamaConfig
from loongforge.components.projector.mlp.config import MLP2xGELUConfig
from loongforge.components.vision.vit.config import ClipViTConfig
from loongforge.config.schema import Config, DataConfig, KernelsConfig, ModelConfig, OptimizerConfig, TrainerConfig
from loongforge.parallel.groups import Groups, make_groups
from loongforge.parallel.layout import Layout
from loongforge.training.conformance.context import Context
from loongforge.training.conformance.outcome import Check
from loongforge.training.schedule import learning_rate
from loongforge.training.state import load_training, save_training
from loongforge.training.verify.trial import Trial

STEPS, CHECKPOINT_AT, GOES_ON = 50, 4, 4
_BATCHES = 4  # learned by heart
_NEAR = 1e-3
"""Nats by which two devices' float32 losses may differ after 50 steps."""
_SAME = 1e-5
"""By which they may differ on one device, in another run."""
_HALF = 0.05
"""By which those of a bfloat16 model may differ from float32's in its first steps."""
_LOSSES, _SAVED = "losses_cpu.json", {True: "checkpoint_cpu", False: "checkpoint_backend"}


def tiny_recipe(*, reference: bool, precision: Literal["fp32", "bf16"] = "fp32") -> Config:
    """An encoder, a projector and a language model of some 100 k parameters."""
    vision = dict(hidden_size=32, num_layers=2, num_heads=2, mlp_hidden_size=64, image_size=32, patch_size=16)
    llm = dict(hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_hidden_size=96, max_seq_len=128)
    model = ModelConfig(
        vision=ClipViTConfig(type="clip_vit", init_std=0.08, **vision),  # type: ignore[arg-type]
        projector=MLP2xGELUConfig(type="mlp2x_gelu", init_std=0.08),
        llm=LlamaConfig(type="llama", vocab_size=256, init_std=0.08, **llm),  # type: ignore[arg-type]
    )
    return Config(
        name="conformance",
        kernels=KernelsConfig(all="reference" if reference else "auto"),
        model=model,
        data=DataConfig(train="none", tokenizer="none"),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05, warmup_steps=5),
        trainer=TrainerConfig(steps=STEPS, global_batch_size=8, micro_batch_size=4, precision=precision),
    )


@functools.cache
def _groups(dist_backend: str) -> Groups:
    """Of one process; they are made once."""
    return make_groups(Layout.from_model(tiny_recipe(reference=True).model, 1), dist_backend)


class _Training:
    """A fresh model, trained step by step."""

    def __init__(self, context: Context, *, reference: bool, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        self.config = tiny_recipe(reference=reference, precision=precision)
        self.groups = _groups(context.backend.dist_backend)
        self.trial = Trial(self.config, self.groups, pack=True)

    def run(self, steps: Iterable[int], *, rate_factor: float = 1.0) -> list[float]:
        """Losses of the steps."""
        losses = []
        for step in steps:
            losses.append(self.trial.learn(step % _BATCHES))
            rate = learning_rate(self.config.optimizer, step, self.config.trainer.steps)
            self.trial.optimizers.step(rate * rate_factor)
        return losses

    def save(self, path: Path) -> None:
        """Weights and optimizer."""
        path.mkdir()
        save_training(path, self.trial.model, self.trial.optimizers, self.groups)

    def load(self, path: Path) -> None:
        """Both back."""
        load_training(path, self.trial.model, self.trial.optimizers, self.groups)


def _difference(mine: list[float], theirs: list[float]) -> float:
    differences = [abs(a - b) for a, b in zip(mine, theirs, strict=True)]
    return max(differences) if all(d == d for d in differences) else float("nan")


def _after_checkpoint(losses: list[float]) -> list[float]:
    return losses[CHECKPOINT_AT : CHECKPOINT_AT + GOES_ON]


def baseline(context: Context) -> list[Check]:
    """On CPU, with the plain formulas; writes its losses and a checkpoint."""
    training = _Training(context, reference=True)
    losses = training.run(range(CHECKPOINT_AT))
    training.save(context.folder / _SAVED[True])
    losses += training.run(range(CHECKPOINT_AT, STEPS))
    (context.folder / _LOSSES).write_text(json.dumps(losses))
    return [Check("the model learns", losses[-1] < losses[0] - 0.5, losses[-1], note=f"from {losses[0]:.3f}")]


def _cpu_losses(context: Context) -> list[float]:
    found: list[float] = json.loads((context.folder / _LOSSES).read_text())
    return found


def curve(context: Context) -> list[Check]:
    """With the backend's own kernels: the CPU's losses, and the same again."""
    losses = _Training(context, reference=False).run(
        range(STEPS), rate_factor=1.05 if context.planted("curve") else 1.0
    )
    again = _Training(context, reference=False).run(range(10))
    half = _Training(context, reference=False, precision="bf16").run(range(10))
    cpu = _cpu_losses(context)
    return [
        Check.below(f"losses of {STEPS} steps", _difference(losses, cpu), _NEAR, "nats from the CPU's"),
        Check.below("losses of 10 steps in bf16", _difference(half, cpu[:10]), _HALF, "nats from the CPU's fp32"),
        Check.below("losses of a second run", _difference(again, losses[:10]), _SAME, "nats from the first's"),
    ]


def checkpoint(context: Context) -> list[Check]:
    """Goes on from its own checkpoint as if it had not stopped, and from the CPU's as the CPU does."""
    whole = _Training(context, reference=False)
    whole.run(range(CHECKPOINT_AT))
    whole.save(context.folder / _SAVED[False])
    going_on = range(CHECKPOINT_AT, CHECKPOINT_AT + GOES_ON)
    expected = whole.run(going_on)
    resumed = _resumed(context, _SAVED[False], going_on, reference=False)
    from_cpu = _resumed(context, _SAVED[True], going_on, reference=False)
    cpu = _after_checkpoint(_cpu_losses(context))
    return [
        Check.below("its own", _difference(resumed, expected), _SAME, "nats from the run that went on"),
        Check.below("the CPU's", _difference(from_cpu, cpu), _NEAR, "nats from the CPU's"),
    ]


def checkpoint_on_cpu(context: Context) -> list[Check]:
    """The backend's checkpoint goes on on CPU."""
    going_on = range(CHECKPOINT_AT, CHECKPOINT_AT + GOES_ON)
    losses = _resumed(context, _SAVED[False], going_on, reference=True)
    expected = _after_checkpoint(_cpu_losses(context))
    return [Check.below("the backend's", _difference(losses, expected), _NEAR, "nats from the CPU's")]


def _resumed(context: Context, saved: str, steps: range, *, reference: bool) -> list[float]:
    """Losses after loading into a model that has learned something else."""
    training = _Training(context, reference=reference)
    training.run(range(30, 32))
    training.load(context.folder / saved)
    if context.planted("checkpoint"):
        for parameter in training.trial.model.parameters():
            parameter.data.mul_(1.05)
    return training.run(steps)
