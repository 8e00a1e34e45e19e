"""The line of metrics.jsonl that a step leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loongforge.config.schema import Config
from loongforge.data.batch import StepData
from loongforge.model.balance import ExpertBalance
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
    experts: ExpertBalance | None = None
    """None: the LLM has none."""
    seconds: float
    """Of the whole step."""
    waited: float
    """Seconds of it spent waiting for data."""


def step_record(taken: StepTaken, config: Config, setup: Setup) -> dict[str, Any]:
    """The fields of a step, but for its number."""
    counts, outcome = taken.counts, taken.outcome
    mean_length = round(counts.tokens / counts.samples)
    flops = training_flops(config.model, tokens=counts.tokens, images=counts.images, seq_len=mean_length)
    speed = sum(flops.values()) / taken.seconds / setup.world.size
    experts = taken.experts
    routed = {} if experts is None else {"router_aux_loss": experts.loss, "balance/experts": experts.imbalance}
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
        "data_wait_s": taken.waited,
        "tokens_per_s": counts.tokens / taken.seconds,
        "tflops": speed / 1e12,
        "mfu": speed / peak if peak else None,
        "memory_gib": setup.backend.peak_memory_bytes() / 2**30,
        "balance/llm": counts.balance_llm,
        "balance/vision": counts.balance_vision,
        **routed,
        "skipped": setup.progress.skipped,
        "left_out": setup.progress.left_out,
    }
