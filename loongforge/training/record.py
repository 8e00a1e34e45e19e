"""The line of metrics.jsonl that a step leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loongforge.config.schema import Config
from loongforge.data.batch import StepData
from loongforge.kernels.backend import Backend
from loongforge.model.assembly import component_configs
from loongforge.model.balance import ExpertBalance
from loongforge.model.work import StepFlops
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
    experts: ExpertBalance | None = None
    """None: the LLM has none."""

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return sum(self.times.values())


def step_record(taken: StepTaken, config: Config, setup: Setup) -> dict[str, Any]:
    """The fields of a step, but for its number."""
    counts, outcome = taken.counts, taken.outcome
    experts = taken.experts
    routed = {} if experts is None else {"router_aux_loss": experts.loss, "balance/experts": experts.imbalance}
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
        **utilisation(setup.flops.step(counts.work), config, setup.backend, taken.seconds * setup.world.size),
        "memory_gib": setup.backend.peak_memory_bytes() / 2**30,
        "balance/llm": counts.balance_llm,
        "balance/vision": counts.balance_vision,
        **routed,
        "skipped": setup.progress.skipped,
        "left_out": setup.progress.left_out,
    }


def utilisation(
    flops: Mapping[str, StepFlops], config: Config, backend: Backend, device_seconds: float
) -> dict[str, float | None]:
    """TFLOP/s of a device, and what part of its peak they are where that is known.

    Components have the whole step's time, so that their parts add up to the whole. The peak of each is that of the type
    it computes in.

    Args:
        flops: Of the step, over all ranks.
        config: The recipe.
        backend: Knows the peaks.
        device_seconds: Of the step, times its devices.
    """
    speeds = {name: found.model / device_seconds for name, found in flops.items()}
    rates: dict[str, float | None] = {"tflops": sum(speeds.values()) / 1e12}
    rates |= {f"tflops/{name}": speed / 1e12 for name, speed in speeds.items()}
    peaks = {
        name: backend.peak_flops(part.dtype or config.trainer.precision)
        for name, part in component_configs(config).items()
    }
    if any(peak is None for peak in peaks.values()):
        return rates | {"mfu": None}
    shares = {name: (speeds[name], flops[name].hardware / device_seconds, peak or 0.0) for name, peak in peaks.items()}
    rates |= {"mfu": sum(speed / peak for speed, _, peak in shares.values())}
    rates |= {f"mfu/{name}": speed / peak for name, (speed, _, peak) in shares.items()}
    return rates | {"hfu": sum(hardware / peak for _, hardware, peak in shares.values())}
