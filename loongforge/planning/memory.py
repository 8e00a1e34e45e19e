"""Bytes that a rank holds.

Activations follow the reckoning of Korthikanti et al., arXiv 2205.05198, for the layers that we have: attention keeps
no matrix of scores, SwiGLU keeps gate, up and their product.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from loongforge.parallel.layout import Layout
from loongforge.planning.parts import Parts
from loongforge.planning.shape import Shape
from loongforge.planning.workload import LABEL_SHARE, Costs


@dataclass
class Memory(Parts):
    """Bytes on one rank."""

    params: float = 0
    gradients: float = 0
    """fp32, one buffer for each trained component."""
    optimizer: float = 0
    """Moments, and fp32 copies of bf16 parameters."""
    activations: float = 0
    """Kept for backward passes at the fullest moment."""
    logits: float = 0
    """Of the label tokens of a micro-batch."""
    image_rows: float = 0
    """Image-token embeddings on their way."""

    def __add__(self, other: Memory) -> Memory:
        return Memory(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


def memory_on(costs: Costs, layout: Layout, rank: int) -> Memory:
    """What a rank holds at most."""
    shape, found = Shape.of(costs, layout), Memory()
    for name, grid in layout.grids().items():
        place = grid.place(rank)
        if place is not None:
            found += _state(costs, layout, name, place.pp)
            found += _llm_work(costs, layout, shape, place.pp) if name == "llm" else Memory()
    if layout.vision is not None and layout.vision.place(rank) is not None:
        found += _encoder_work(costs, layout, shape)
    return found


def _state(costs: Costs, layout: Layout, name: str, stage: int) -> Memory:
    params, size = costs.params_on(name, layout, stage), costs.size(name)
    if not costs.part(name).trains:
        return Memory(params=params * size)
    kept = float(params)
    if costs.config.optimizer.distributed:
        kept = sum(part / ranks for part, ranks in costs.replicated(name, layout, stage))
    return Memory(params=params * size, gradients=4 * params, optimizer=kept * (8 + (4 if size == 2 else 0)))


def _llm_work(costs: Costs, layout: Layout, shape: Shape, stage: int) -> Memory:
    llm, grid, size = costs.llm, layout.llm, costs.size("llm")
    tokens = shape.micro_batch * costs.workload.tokens / grid.cp
    split = grid.tp if layout.sequence_parallel else 1
    layers = -(-llm.num_layers // grid.pp)  # of the fullest stage
    kept = llm.kept_per_token(grid.tp, sequence_parallel=layout.sequence_parallel)
    kept += llm.kv_width / grid.tp * (grid.cp if grid.cp > 1 else 0)  # gathered keys and values
    per_micro_batch = layers * kept
    if costs.config.trainer.recompute == "full":
        per_micro_batch = layers * llm.hidden_size / split + kept / min(grid.pp - stage, shape.micro_batches)
    in_flight = min(grid.pp - stage, shape.micro_batches)
    trains = costs.factors["llm"] > 1
    found = Memory(activations=size * tokens * per_micro_batch * in_flight if trains else 0)
    if stage == grid.pp - 1:
        labels = LABEL_SHARE * shape.micro_batch * (costs.workload.tokens - costs.workload.images * costs.image_tokens)
        found.logits = labels / grid.cp * llm.vocab_size / grid.tp * (size + 2 * 4)  # logits, in fp32, probabilities
    if stage == 0:
        rows = shape.images * costs.image_tokens / grid.cp / split
        found.image_rows = 2 * rows * llm.hidden_size * size * _windows_in_flight(layout, shape)
    return found


def _windows_in_flight(layout: Layout, shape: Shape) -> int:
    """A decoupled encoder works ahead of the LLM by what its pipeline holds and one more window."""
    return min(shape.windows, -(-layout.llm.pp // shape.window) + 1) if layout.decoupled else 1


def _encoder_work(costs: Costs, layout: Layout, shape: Shape) -> Memory:
    vision, projector, grid = costs.vision, costs.projector, layout.vision
    assert vision is not None and projector is not None and grid is not None
    images = shape.images_on(layout, "vision") * _windows_in_flight(layout, shape)
    size = costs.size("vision")
    kept = 0.0
    if vision.trains:
        kept = vision.kept_per_image(grid.tp)
        if costs.config.trainer.recompute == "full":
            kept = vision.reduced_per_image() / 2  # the input of every layer
    if vision.trains or projector.trains:
        kept += vision.num_image_tokens * vision.output_size + 2 * costs.image_tokens * costs.llm.hidden_size
    return Memory(activations=size * images * kept)
