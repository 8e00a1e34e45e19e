"""Time of a step and what travels in it, from the sizes of a layout and the figures of a device.

The model of the schedule: megatron-core's 1F1B pipeline in windows, encoders before each window (colocated) or beside
it (decoupled), gradients reduced after the last micro-batch. Nothing else overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loongforge.parallel.grid import Grid
from loongforge.parallel.layout import Layout
from loongforge.planning.device import Device
from loongforge.planning.memory import Memory, memory_on
from loongforge.planning.shape import Shape
from loongforge.planning.workload import Costs


@dataclass
class Times:
    """Seconds of a step."""

    llm: float = 0
    """Of the busiest pipeline stage, all micro-batches: products and layer overhead."""
    encoder: float = 0
    """Of the busiest rank, products and layer overhead; beside the LLM where it is decoupled."""
    tensor_parallel: float = 0
    context_parallel: float = 0
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

    @property
    def total(self) -> float:
        """Of the step."""
        return sum(vars(self).values())


@dataclass
class Traffic:
    """Bytes that the busiest rank receives in a step."""

    tensor_parallel: float = 0
    context_parallel: float = 0
    pipeline: float = 0
    image_rows: float = 0
    gradients: float = 0

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


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
    traffic: Traffic = field(default_factory=Traffic)

    def fits(self, device: Device) -> bool:
        """Whether the fullest rank has the memory; a tenth is left to the system and to fragments."""
        return self.memory.total <= 0.9 * device.memory_gib * 2**30

    def mfu(self, device: Device, dtype: str) -> float:
        """Part of the peak that the step's FLOPs make use of."""
        peak = device.peak_tflops[dtype] * 1e12 * self.layout.world_size
        return sum(self.flops.values()) / self.times.total / peak


@dataclass(frozen=True)
class _Collective:
    """A ring over a group of neighbouring ranks."""

    device: Device
    size: int
    extent: int

    def sum(self, volume: float, calls: float) -> tuple[float, float]:
        """Bytes and seconds of all-reduces of `volume` bytes in all, in `calls` calls."""
        received = 2 * volume * (self.size - 1) / self.size
        return received, self._seconds(received, 2 * calls)

    def gather(self, volume: float, calls: float) -> tuple[float, float]:
        """The same of all-gathers or reduce-scatters to or from `volume` bytes."""
        received = volume * (self.size - 1) / self.size
        return received, self._seconds(received, calls)

    def _seconds(self, received: float, steps: float) -> float:
        if self.size == 1:
            return 0.0
        return received / self.device.bandwidth(self.extent) + steps * (self.size - 1) * self.device.latency_us * 1e-6


def predict(costs: Costs, layout: Layout, device: Device) -> Prediction:
    """Memory, traffic and time of a step."""
    shape = Shape.of(costs, layout)
    samples = costs.config.trainer.global_batch_size
    flops = {name: value * costs.factors[name] for name, value in costs.forward_flops(samples).items()}
    memory, fullest = max(((memory_on(costs, layout, r), r) for r in _kinds_of_ranks(layout)), key=lambda p: p[0].total)
    found = Prediction(layout, shape, flops, memory, fullest)
    stages = _llm_times(costs, layout, device, found)
    encode = _encoder_time(costs, layout, device, found) if layout.vision is not None else 0.0
    _schedule(layout, found, stages, encode)
    _gradient_times(costs, layout, device, found)
    return found


def _kinds_of_ranks(layout: Layout) -> list[int]:
    """One rank of each pipeline stage, and an encoder's own: all others hold as much as one of these."""
    grid = layout.llm
    first = [grid.ranks[stage * len(grid.ranks) // grid.pp] for stage in range(grid.pp)]
    return first + ([layout.vision.ranks[0]] if layout.vision is not None else [])


def _llm_times(costs: Costs, layout: Layout, device: Device, found: Prediction) -> list[float]:
    """Seconds of a micro-batch in each stage, forward and backward; notes what travels."""
    grid, shape, llm = layout.llm, found.shape, costs.llm
    factor, size = costs.factors["llm"], costs.size("llm")
    tokens = shape.micro_batch * costs.workload.tokens
    layers = llm.num_layers / grid.pp
    head = 2.0 * llm.vocab_size * llm.hidden_size
    body = llm.flops(costs.workload.tokens) - head
    rate = device.flops_per_s(costs.dtype("llm")) * grid.tp * grid.cp
    recompute = factor + (1 if costs.config.trainer.recompute == "full" and factor > 1 else 0)
    overhead = layers * recompute * device.layer_overhead_us * 1e-6
    passes = 2 if factor > 1 else 1  # an all-reduce in each direction
    local = tokens / grid.cp * llm.hidden_size * size
    tp = _Collective(device, grid.tp, grid.tp)
    tp_bytes, tp_time = tp.sum(2 * layers * passes * local, 2 * layers * passes)
    cp = _Collective(device, grid.cp, grid.tp * grid.cp)
    cp_bytes, cp_time = cp.gather(layers * passes * tokens * llm.kv_width / grid.tp * size, layers * passes)
    pp_bytes = passes * local / (grid.tp if layout.sequence_parallel else 1) if grid.pp > 1 else 0.0
    pp_time = pp_bytes / device.bandwidth(len(grid.ranks)) + (passes * device.latency_us * 1e-6 if pp_bytes else 0.0)
    number = shape.micro_batches
    found.traffic.tensor_parallel += number * tp_bytes
    found.traffic.context_parallel += number * cp_bytes
    found.traffic.pipeline += number * pp_bytes
    found.times.tensor_parallel += number * tp_time
    found.times.context_parallel += number * cp_time
    found.times.pipeline += number * pp_time
    work = [tokens * body / grid.pp * recompute / rate + overhead for _ in range(grid.pp)]
    work[-1] += LABELS_OF_HEAD * tokens * head * factor / rate
    found.times.llm = number * max(work)
    return [seconds + tp_time + cp_time + pp_time for seconds in work]


LABELS_OF_HEAD = 0.5
"""Part of the positions whose logits are computed: those with a label."""


def _encoder_time(costs: Costs, layout: Layout, device: Device, found: Prediction) -> float:
    """Seconds of a window on the busiest encoder rank, forward and backward; notes what travels."""
    vision, projector, shape = costs.vision, costs.projector, found.shape
    assert vision is not None and projector is not None and layout.vision is not None and layout.projector is not None
    seconds = 0.0
    for name, grid, flops in (
        ("vision", layout.vision, vision.flops()),
        ("projector", layout.projector, projector.flops(vision.num_image_tokens, **costs.ends)),
    ):
        images, factor = shape.images_on(layout, name), costs.factors[name]
        layers = getattr(vision, "built_layers", 1) if name == "vision" else 1
        seconds += images * flops * factor / (device.flops_per_s(costs.dtype(name)) * grid.tp)
        seconds += layers * factor * device.layer_overhead_us * 1e-6 if images else 0.0
        if name == "vision":
            seconds += _encoder_tensor_parallel(costs, grid, device, found, images, layers)
    return seconds + _image_row_time(costs, layout, device, found)


def _encoder_tensor_parallel(
    costs: Costs, grid: Grid, device: Device, found: Prediction, images: float, layers: int
) -> float:
    vision = costs.vision
    assert vision is not None
    passes = 1 if vision.freeze else 2
    volume = passes * images * vision.reduced_per_image() * costs.size("vision")
    received, seconds = _Collective(device, grid.tp, grid.tp).sum(volume, 2 * layers * passes)
    found.traffic.tensor_parallel += found.shape.windows * received
    return seconds


def _image_row_time(costs: Costs, layout: Layout, device: Device, found: Prediction) -> float:
    """Seconds of a window's rows to the busiest merging rank, and of their gradients back."""
    grid, shape = layout.llm, found.shape
    passes = 1 if all(costs.part(name).freeze for name in ("vision", "projector")) else 2
    rows = shape.images * costs.image_tokens / grid.cp / (grid.tp if layout.sequence_parallel else 1)
    received = rows * costs.llm.hidden_size * costs.size("llm") * passes
    found.traffic.image_rows += shape.windows * received
    seconds = received / device.bandwidth(layout.world_size) + passes * device.latency_us * 1e-6
    return seconds if layout.world_size > 1 and rows else 0.0


def _schedule(layout: Layout, found: Prediction, stages: list[float], encode: float) -> None:
    """Puts the parts of a step one after another, or beside one another."""
    times, shape = found.times, found.shape
    found.times.encoder = shape.windows * encode
    drains = 1 if layout.decoupled else shape.windows  # colocated: the pipeline is drained after each window
    times.bubble = drains * (sum(stages) - max(stages))
    if layout.decoupled:
        llm = shape.micro_batches * max(stages) + times.bubble
        # the LLM waits for the first window and the encoder for the last gradients; the rest passes side by side
        times.hidden = max(llm, times.encoder) + encode - llm - times.encoder if times.encoder else 0.0


def _gradient_times(costs: Costs, layout: Layout, device: Device, found: Prediction) -> None:
    for name, grid in layout.grids().items():
        if costs.part(name).freeze:
            continue
        params = max(costs.params_on(name, layout, stage) for stage in {0, grid.pp - 1})
        ring = _Collective(device, grid.dp * grid.cp, len(grid.ranks) // grid.pp)
        if costs.config.optimizer.distributed:
            down, wait = ring.gather(4.0 * params, 1)
            up, again = ring.gather(float(costs.size(name) * params), 1)
            received, seconds = down + up, wait + again
        else:
            received, seconds = ring.sum(4.0 * params, 1)
        found.traffic.gradients += received
        found.times.gradients += seconds
        shards = ring.size if costs.config.optimizer.distributed else 1
        # gradient, parameter and both moments are read, the last three written; clipping reads and writes gradients
        found.times.optimizer += params / shards * 9 * 4 / (device.memory_gb_per_s * 1e9)
