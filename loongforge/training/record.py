"""The line of metrics.jsonl that a step leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loongforge.config.schema import Config
from loongforge.data.batch import StepData
from loongforge.model.flops import training_flops
from loongforge.training.counts import StepCounts
from loongforge.training.optimizer import StepOutcome
from loongforge.training.run_setup import Setup


@dataclass(frozen=True, kw_only=True)
class StepTaken:
    """What happened in a step."""

    data: StepData
    counts: StepCounts
    loss: float
    """Mean over the labelled tokens of the global batch, in nats."""
    rate: float
    """Learning rate before each component's `lr_scale`."""
    outcome: StepOutcome
    times: Mapping[str, float]
    """Seconds in each phase, mean over the ranks; together those of the step."""
    own_times: Mapping[str, float]
    """The same of this rank."""

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.times.values())


def step_record(taken: StepTaken, config: Config, setup: Setup) -> dict[str, Any]:
    """The fields of a step, but for its number."""
    counts, outcome = taken.counts, taken.outcome
    mean_length = round(counts.tokens / counts.samples)
    flops = training_flops(config.model, tokens=counts.tokens, images=counts.images, seq_len=mean_length)
    speed = sum(flops.values()) / taken.seconds / setup.world.size
    peak = setup.backend.peak_flops(config.trainer.precision)
    return {
        "loss": taken.loss,
        "lr": taken.rate,
        "grad_norm": outcome.grad_norm,
        **{f"grad_norm/{name}": norm for name, norm in outcome.component_norms.items()},
        "loss_tokens": counts.loss_tokens,
        "tokens": counts.tokens,
        "padding": 1 - counts.tokens / counts.padded_tokens,
        "samples": counts.samples,
        "images": counts.images,
        "step_time_s": taken.seconds,
        "data_wait_s": taken.times["data"],
        **{f"time/{phase}": seconds for phase, seconds in taken.times.items()},
        "tokens_per_s": counts.tokens / taken.seconds,
        "tflops": speed / 1e12,
        "mfu": speed / peak if peak else None,
        "memory_gib": setup.backend.peak_memory_bytes() / 2**30,
        "balance/llm": counts.balance_llm,
        "balance/vision": counts.balance_vision,
        "skipped": setup.progress.skipped,
        "left_out": setup.progress.left_out,
    }
