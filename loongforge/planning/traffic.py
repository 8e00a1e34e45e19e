"""Bytes that a rank receives in a step, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from loongforge.parallel.grid import Coordinates, Grid
from loongforge.parallel.layout import Layout
from loongforge.planning.parts import Parts
from loongforge.planning.shape import Shape
from loongforge.planning.workload import Costs


@dataclass
class Traffic(Parts):
    """Bytes that a rank receives in a step."""

    tensor_parallel: float = 0
    context_parallel: float = 0
    pipeline: float = 0
    expert_parallel: float = 0
    image_rows: float = 0
    """Embeddings of image tokens on their way to the LLM, or their gradients on the way back."""
    gradients: float = 0
    """Reduced over replicas; with a distributed optimizer also the parameters on their way back."""


@dataclass(frozen=True)
class Collectives:
    """Collective calls of one kind in a group of ranks."""

    size: int
    """Ranks of the group."""
    extent: int
    """Neighbouring ranks that the group lies within; decides which network it uses."""
    received: float
    """Bytes that each rank receives."""
    steps: float
    """Times that a rank waits for a neighbour."""

    @classmethod
    def sums(cls, size: int, extent: int, volume: float, calls: float) -> Collectives:
        """All-reduces of `volume` bytes in all, as rings."""
        return cls(size, extent, 2 * volume * (size - 1) / size, 2 * calls * (size - 1))

    @classmethod
    def gathers(cls, size: int, extent: int, volume: float, calls: float) -> Collectives:
        """All-gathers of `volume` bytes in all, or reduce-scatters, as rings."""
        return cls(size, extent, volume * (size - 1) / size, calls * (size - 1))


def llm_tensor_parallel(costs: Costs, layout: Layout, shape: Shape) -> Collectives:
    """Of a micro-batch in a stage: two all-reduces per layer and pass, recomputation included. Sequence parallelism
    makes a gather and a scatter of each, and gathers the inputs of both products once more for the backward pass."""
    grid, passes = layout.llm, _passes(costs, "llm") + _recomputed(costs)
    calls = 2 * costs.llm.num_layers / grid.pp * passes
    size = _stage_bytes(costs, layout, shape)
    if not layout.sequence_parallel:
        return Collectives.sums(grid.tp, grid.tp, calls * size, calls)
    again = 2 * costs.llm.num_layers / grid.pp * (1 if _passes(costs, "llm") > 1 else 0)
    return Collectives.gathers(grid.tp, grid.tp, (2 * calls + again) * size, 2 * calls + again)


def llm_context_parallel(costs: Costs, layout: Layout, shape: Shape) -> Collectives:
    """Of a micro-batch in a stage: keys and values gathered in every layer, their gradients scattered."""
    grid, llm = layout.llm, costs.llm
    calls = llm.num_layers / grid.pp * (_passes(costs, "llm") + _recomputed(costs))
    tokens = shape.micro_batch * costs.workload.tokens
    volume = calls * tokens * llm.kv_width / grid.tp * costs.size("llm")
    return Collectives.gathers(grid.cp, grid.tp * grid.cp, volume, calls)


def llm_expert_parallel(costs: Costs, layout: Layout, shape: Shape) -> Collectives:
    """Of a micro-batch in a stage: tokens to the ranks of their experts and back, spread evenly over experts."""
    grid, llm = layout.llm, costs.llm
    rows = [llm.expert_rows(layer) for layer in range(llm.num_layers)]
    calls = 2 * (_passes(costs, "llm") + _recomputed(costs)) / grid.pp
    volume = calls * sum(rows) * _stage_bytes(costs, layout, shape)
    return Collectives.gathers(grid.ep, grid.tp * grid.ep, volume, calls * sum(map(bool, rows)))


def between_stages(costs: Costs, layout: Layout, shape: Shape) -> float:
    """Bytes of a micro-batch from one stage to the next, for one rank and direction."""
    return _stage_bytes(costs, layout, shape) / (layout.llm.tp if layout.sequence_parallel else 1)


def encoder_tensor_parallel(costs: Costs, layout: Layout, shape: Shape) -> Collectives:
    """Of a window on the busiest encoder replica: two all-reduces per layer and direction."""
    vision, grid = costs.vision, layout.vision
    assert vision is not None and grid is not None
    passes = 2 + _recomputed(costs) if vision.trains else 1
    images = shape.images_on(layout, "vision")
    volume = passes * images * vision.reduced_per_image() * costs.size("vision")
    return Collectives.sums(grid.tp, grid.tp, volume, 2 * passes * vision.built_layers)


def merged_rows(costs: Costs, layout: Layout, shape: Shape, *, encodes: bool) -> float:
    """Bytes of image-token embeddings of a window that a rank of the LLM's first stage receives.

    Args:
        costs: Of the recipe.
        layout: Of the run.
        shape: Of its batches.
        encodes: The rank is also one of the encoder's: what it has made of its own images does not travel.
    """
    own = min(1.0, layout.dp / layout.grids()["projector"].dp) if encodes else 0.0
    rows = (1 - own) * shape.images * costs.image_tokens / _parts(layout)
    return rows * costs.llm.hidden_size * costs.size("llm")


def returned_rows(costs: Costs, layout: Layout, shape: Shape, *, merges: bool) -> float:
    """Bytes of gradients of a window that an encoder rank receives; none where encoder and projector are frozen.

    Args:
        costs: Of the recipe.
        layout: Of the run.
        shape: Of its batches.
        merges: The rank is also one of the LLM's first stage: it has the gradients of what it merges itself.
    """
    if not (costs.part("vision").trains or costs.part("projector").trains):
        return 0.0
    own = min(1.0, layout.grids()["projector"].dp / layout.dp) / _parts(layout) if merges else 0.0
    rows = (1 - own) * shape.images_on(layout, "projector") * costs.image_tokens
    return rows * costs.llm.hidden_size * costs.size("llm")


def _parts(layout: Layout) -> int:
    """Parts into which context and sequence parallelism cut a row."""
    return layout.llm.cp * (layout.llm.tp if layout.sequence_parallel else 1)


def gradient_collectives(costs: Costs, layout: Layout, name: str, stage: int) -> list[Collectives]:
    """Of a component's gradients (fp32) in a step; a distributed optimizer scatters them and gathers parameters."""
    grid = layout.grids()[name]
    if not costs.part(name).trains:
        return []
    extent, found = len(grid.ranks) // grid.pp, []
    for params, size in costs.replicated(name, layout, stage):
        if costs.config.optimizer.distributed:
            back = costs.size(name) * params
            found.append(Collectives.gathers(size, extent, 4.0 * params, 1))
            found.append(Collectives.gathers(size, extent, back, 1))
        else:
            found.append(Collectives.sums(size, extent, 4.0 * params, 1))
    return found


def traffic_on(costs: Costs, layout: Layout, rank: int) -> Traffic:
    """What a rank receives in a step."""
    shape, found = Shape.of(costs, layout), Traffic()
    for name, grid in layout.grids().items():
        place = grid.place(rank)
        if place is None:
            continue
        found.gradients += sum(part.received for part in gradient_collectives(costs, layout, name, place.pp))
        if name == "llm":
            _add_llm(found, costs, layout, shape, place, encodes=_on(layout, "projector", rank))
        elif name == "vision":
            found.tensor_parallel += shape.windows * encoder_tensor_parallel(costs, layout, shape).received
        else:
            merges = _on(layout, "llm", rank, stage=0)
            found.image_rows += shape.windows * returned_rows(costs, layout, shape, merges=merges)
    return found


def _on(layout: Layout, name: str, rank: int, stage: int | None = None) -> bool:
    """Whether a rank holds a part of a component, of this stage."""
    grid = layout.grid(name)
    place = grid.place(rank) if grid is not None else None
    return place is not None and stage in (None, place.pp)


def _add_llm(found: Traffic, costs: Costs, layout: Layout, shape: Shape, place: Coordinates, *, encodes: bool) -> None:
    grid, number = layout.llm, shape.micro_batches
    found.tensor_parallel += number * llm_tensor_parallel(costs, layout, shape).received
    found.context_parallel += number * llm_context_parallel(costs, layout, shape).received
    found.expert_parallel += number * llm_expert_parallel(costs, layout, shape).received
    found.pipeline += number * _directions(grid, place.pp, costs) * between_stages(costs, layout, shape)
    if place.pp == 0 and layout.vision is not None:
        found.image_rows += shape.windows * merged_rows(costs, layout, shape, encodes=encodes)


def _directions(grid: Grid, stage: int, costs: Costs) -> int:
    """Ways that something arrives at a stage: activations from before it, gradients from behind it."""
    return int(stage > 0) + int(stage < grid.pp - 1 and _passes(costs, "llm") > 1)


def _stage_bytes(costs: Costs, layout: Layout, shape: Shape) -> float:
    tokens = shape.micro_batch * costs.workload.tokens / layout.llm.cp
    return tokens * costs.llm.hidden_size * costs.size("llm")


def _recomputed(costs: Costs) -> int:
    """Forward passes that are done twice."""
    return 1 if costs.config.trainer.recompute == "full" and _passes(costs, "llm") > 1 else 0


def _passes(costs: Costs, name: str) -> int:
    """Directions in which a component works."""
    return 2 if costs.factors[name] > 1 else 1
