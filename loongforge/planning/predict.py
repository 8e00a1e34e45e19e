"""Time of a step, from the sizes of a layout and the figures of a device.

The model of the schedule: megatron-core's 1F1B pipeline in windows, encoders before each window (colocated) or beside
it (decoupled), gradients reduced after the last micro-batch. Nothing else overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loongforge.components.llm.stages import stage_sizes
from loongforge.parallel.layout import Layout
from loongforge.planning.device import Device
from loongforge.planning.memory import Memory, memory_on
from loongforge.planning.parts import Parts
from loongforge.planning.shape import Shape
from loongforge.planning.traffic import (
    Collectives,
    between_stages,
    encoder_tensor_parallel,
    gradient_collectives,
    llm_context_parallel,
    llm_expert_parallel,
    llm_tensor_parallel,
    merged_rows,
    returned_rows,
)
from loongforge.planning.workload import LABEL_SHARE, Costs

STATE_PASSES = 9
"""Numbers read or written for each parameter in an optimizer step: gradient, parameter and both moments are read, the
last three written, and clipping reads and writes the gradient."""


@dataclass
class Times(Parts):
    """Seconds of a step."""

    llm: float = 0
    """Of the busiest pipeline stage, all micro-batches: products and layer overhead."""
    encoder: float = 0
    """Of the busiest rank, with what its tensor-parallel ranks exchange; beside the LLM where it is decoupled."""
    tensor_parallel: float = 0
    """Of the LLM."""
    context_parallel: float = 0
    expert_parallel: float = 0
    """Tokens to the ranks of their experts and back."""
    pipeline: float = 0
    """Activations from stage to stage."""
    bubble: float = 0
    """The busiest stage waits while the pipeline fills and drains."""
    image_rows: float = 0
    """Embeddings and gradients between encoder and LLM."""
    gradients: float = 0
    """Reduction over replicas; with a distributed optimizer also the parameters' way back."""
    optimizer: float = 0
    hidden: float = 0
    """Negative: encoder time that passes beside the LLM's."""


@dataclass
class Prediction:
    """What a layout costs on a device."""

    layout: Layout
    shape: Shape
    flops: dict[str, float]
    """Of a step by component, backward passes included."""
    memory: Memory
    """Of the fullest rank."""
    fullest: int
    """That rank."""
    times: Times = field(default_factory=Times)

    def fits(self, device: Device) -> bool:
        """Whether the fullest rank has the memory."""
        return self.memory.total <= device.usable_bytes

    def mfu(self, device: Device, dtype: str) -> float:
        """Part of the peak that the step's FLOPs make use of."""
        peak = device.peak_tflops[dtype] * 1e12 * self.layout.world_size
        return sum(self.flops.values()) / self.times.total / peak


def predict(costs: Costs, layout: Layout, device: Device) -> Prediction:
    """Memory and time of a step."""
    memory, fullest = max(
        ((memory_on(costs, layout, rank), rank) for rank in fullest_candidates(layout)), key=lambda pair: pair[0].total
    )
    found = Prediction(layout, Shape.of(costs, layout), costs.step_flops, memory, fullest)
    stages = _llm_times(costs, found, device)
    encode = rows = 0.0
    if layout.vision is not None:
        encode, rows = _encoder_time(costs, found, device), _row_time(costs, found, device)
    found.times.encoder, found.times.image_rows = found.shape.windows * encode, found.shape.windows * rows
    _schedule(found, stages, encode + rows)
    _state_times(costs, found, device)
    return found


def fullest_candidates(layout: Layout) -> list[int]:
    """Ranks one of which holds most: the first stage has the most micro-batches in flight, the last one the logits;
    each with and without a part of the encoder, and an encoder on ranks of its own."""
    grid, encoders = layout.llm, layout.vision
    size = len(grid.ranks) // grid.pp
    stages = [grid.ranks[:size], grid.ranks[-size:]] if grid.pp > 1 else [grid.ranks]
    found = [stage[0] for stage in stages]
    if encoders is None or (len(encoders.ranks) == len(grid.ranks) and not layout.decoupled):
        return found
    if layout.decoupled:
        return [*found, encoders.ranks[0]]
    for stage in (grid.ranks[first : first + size] for first in range(0, len(grid.ranks), size)):
        found += sorted(set(stage) & set(encoders.ranks))[:1]
    return found


def _seconds(device: Device, calls: Collectives) -> float:
    if calls.size == 1:
        return 0.0
    return calls.received / device.bandwidth(calls.extent) + calls.steps * device.latency_us * 1e-6


def _llm_times(costs: Costs, found: Prediction, device: Device) -> list[float]:
    """Seconds of a micro-batch in each stage, forward and backward."""
    grid, shape, llm = found.layout.llm, found.shape, costs.llm
    tokens, factor = shape.micro_batch * costs.workload.tokens, costs.factors["llm"]
    head = 2.0 * llm.vocab_size * llm.hidden_size
    rate = device.flops_per_s(costs.dtype("llm")) * grid.tp * grid.cp
    passes = factor + (1 if costs.config.trainer.recompute == "full" and factor > 1 else 0) + _counting(costs, found)
    body = tokens * (costs.llm_flops_per_token - head) / rate + llm.num_layers * device.layer_overhead_us * 1e-6
    work = [body * passes * layers / llm.num_layers for layers in stage_sizes(llm.num_layers, grid.pp)]
    work[-1] += LABEL_SHARE * tokens * head * factor / rate
    tp = _seconds(device, llm_tensor_parallel(costs, found.layout, shape))
    cp = _seconds(device, llm_context_parallel(costs, found.layout, shape))
    ep = _seconds(device, llm_expert_parallel(costs, found.layout, shape))
    pp = 0.0
    if grid.pp > 1:
        one_way = between_stages(costs, found.layout, shape) / device.bandwidth(len(grid.ranks))
        pp = min(2, factor) * (one_way + device.latency_us * 1e-6)
    number, times = shape.micro_batches, found.times
    times.llm, times.tensor_parallel = number * max(work), number * tp
    times.context_parallel, times.expert_parallel, times.pipeline = number * cp, number * ep, number * pp
    return [seconds + tp + cp + ep + pp for seconds in work]


def _counting(costs: Costs, found: Prediction) -> int:
    """Forward passes that only count the load of experts."""
    routers = costs.llm.routers
    return int(routers is not None and routers.counts_first(found.shape.micro_batches, found.layout.llm.pp))


def _encoder_time(costs: Costs, found: Prediction, device: Device) -> float:
    """Seconds of a window on the busiest encoder rank, forward and backward."""
    seconds = _seconds(device, encoder_tensor_parallel(costs, found.layout, found.shape))
    for name in ("vision", "projector"):
        grid, images = found.layout.grids()[name], found.shape.images_on(found.layout, name)
        passes = costs.factors[name]
        if name == "vision" and costs.config.trainer.recompute == "full" and passes > 1:
            passes += 1
        passes += _counting(costs, found)
        rate = device.flops_per_s(costs.dtype(name)) * grid.tp
        seconds += passes * images * costs.flops_per_image[name] / rate
        seconds += passes * costs.encoder_layers[name] * device.layer_overhead_us * 1e-6 if images else 0.0
    return seconds


def _row_time(costs: Costs, found: Prediction, device: Device) -> float:
    """Seconds of a window's rows to the busiest merging rank, and of their gradients back."""
    apart = found.layout.decoupled
    rows = merged_rows(costs, found.layout, found.shape, encodes=not apart)
    gradients = returned_rows(costs, found.layout, found.shape, merges=not apart)
    ways = int(rows > 0) + int(gradients > 0)
    return (rows + gradients) / device.bandwidth(found.layout.world_size) + ways * device.latency_us * 1e-6


def _schedule(found: Prediction, stages: list[float], encode: float) -> None:
    """Adds what comes of doing the parts of a step one after another, or beside one another.

    Args:
        found: With the times of its parts.
        stages: Seconds of a micro-batch in each stage.
        encode: Seconds of a window in the encoder, with the way of its rows.
    """
    times, shape, decoupled = found.times, found.shape, found.layout.decoupled
    drains = 1 if decoupled else shape.windows  # colocated: the pipeline is drained after each window
    times.bubble = drains * (sum(stages) - max(stages))
    if decoupled:
        # the LLM waits for the first window and the encoder for the last gradients, or for the LLM's last window
        llm, encoder = shape.micro_batches * max(stages) + times.bubble, shape.windows * encode
        last = shape.window * max(stages) + times.bubble
        times.hidden = min(0.0, max(llm + encode, encoder + last) - llm - encoder)


def _state_times(costs: Costs, found: Prediction, device: Device) -> None:
    """Reduction of gradients, and the optimizer's step."""
    for name, grid in found.layout.grids().items():
        if not costs.part(name).trains:
            continue
        ends = {0, grid.pp - 1}
        stage = max(ends, key=lambda stage: costs.trained_on(name, found.layout, stage))
        calls = gradient_collectives(costs, found.layout, name, stage)
        found.times.gradients += sum(_seconds(device, part) for part in calls)
        params = float(costs.trained_on(name, found.layout, stage))
        if costs.config.optimizer.distributed:
            params = sum(part / ranks for part, ranks in costs.replicated(name, found.layout, stage))
        found.times.optimizer += params * STATE_PASSES * 4 / (device.memory_gb_per_s * 1e9)
