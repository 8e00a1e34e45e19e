"""A recipe made small enough to try its layout on this machine. No torch here."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from math import gcd, lcm

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import Config, ModelConfig, ParallelConfig
from loongforge.model.checks import check_model
from loongforge.parallel.grid import AXES, Grid
from loongforge.parallel.layout import Layout

MICRO_BATCH_SIZE = 2
# Which sizes are cut to what where there are too many ranks, one after another until they fit.
_CUTS = (("dp", 2), ("pp", 2), ("tp", 2), ("cp", 2), ("dp", 1))


@dataclass(frozen=True)
class SmallCopy:
    """A small recipe and the layout that it asks for."""

    config: Config
    layout: Layout


def small_copy(config: Config, layout: Layout, *, steps: int, limit: int) -> SmallCopy:
    """The recipe with small copies of its components, its layout cut to few ranks, for synthetic batches in fp32.

    Args:
        config: The recipe.
        layout: Of the recipe.
        steps: Optimizer steps.
        limit: Most ranks.
    """
    cut = cut_layout(config.model, layout, limit)
    small = deepcopy(config)
    divisor = lcm(cut.parallel["llm"].ep, *(cut.parallel[name].tp or grid.tp for name, grid in layout.grids().items()))
    llm, vision, projector = config.model.llm, config.model.vision, config.model.projector
    assert isinstance(llm, LLMConfig)
    stages = cut.parallel["llm"].pp
    small.model.init_from = None
    small.model.llm = llm.small_copy(num_layers=max(2, stages), divisor=divisor)
    if isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig):
        small.model.vision = vision.small_copy(divisor=divisor)
        small.model.projector = projector.small_copy(divisor=divisor)
    for name, parallel in cut.parallel.items():
        part = getattr(small.model, name)
        part.parallel, part.dtype = parallel, None
    made = Layout.from_model(small.model, cut.world_size)
    batch = MICRO_BATCH_SIZE * max(3, stages + 1) * made.dp
    small.backend = "cpu"
    small.trainer = replace(
        config.trainer, steps=steps, precision="fp32", micro_batch_size=MICRO_BATCH_SIZE, global_batch_size=batch
    )
    small.optimizer = replace(config.optimizer, lr=1e-3, warmup_steps=min(2, steps - 1), schedule="constant")
    check_model(small, made)
    return SmallCopy(small, made)


@dataclass(frozen=True)
class Cut:
    """Sizes of a layout, cut to fewer ranks."""

    world_size: int
    parallel: dict[str, ParallelConfig]
    """By component."""


def cut_layout(model: ModelConfig, layout: Layout, limit: int) -> Cut:
    """The layout of a model, its data-parallel, then its other sizes cut until at most `limit` ranks are left.

    What makes it special stays where it can: sizes above 1, encoders on ranks of their own, or on some of the LLM's.

    Raises:
        UserError: the smallest such layout has more ranks.
    """
    found = Cut(layout.world_size, {name: getattr(model, name).parallel for name in layout.grids()})
    largest: dict[str, int] = {}
    for axis, size in _CUTS:
        if found.world_size > limit:
            largest[axis] = size
            found = _cut(layout, largest)
    if found.world_size > limit:
        raise UserError(
            f"the smallest layout like this one has {found.world_size} processes, more than --max-processes {limit}"
        )
    return found


def _cut(layout: Layout, largest: dict[str, int]) -> Cut:
    """The layout without some of its ranks; the others keep their order."""
    llm = _kept(layout.llm, largest)
    ranks = {"llm": llm}
    if layout.vision is not None:
        shared = set(llm) & set(layout.vision.ranks)
        ranks["vision"] = _kept(layout.vision, largest) if layout.decoupled else sorted(shared) or llm[-1:]
    if layout.projector is not None:
        ranks["projector"] = ranks["vision"]
    numbers = {rank: number for number, rank in enumerate(sorted({*llm, *ranks.get("vision", ())}))}
    parallel = {}
    for name, grid in layout.grids().items():
        tp, cp, pp = (min(grid.sizes[axis], largest.get(axis, grid.sizes[axis])) for axis in ("tp", "cp", "pp"))
        tp = next(size for size in range(tp, 0, -1) if len(ranks[name]) % size == 0)
        parallel[name] = ParallelConfig(tp=tp, cp=cp, pp=pp, ranks=sorted(numbers[rank] for rank in ranks[name]))
    llm_sizes = parallel["llm"]
    llm_sizes.sequence_parallel = layout.sequence_parallel
    llm_sizes.ep = gcd(layout.llm.ep, len(llm) // ((llm_sizes.tp or 1) * llm_sizes.pp))
    return Cut(len(numbers), parallel)


def _kept(grid: Grid, largest: dict[str, int]) -> list[int]:
    """Ranks that stay: of an axis that is cut, the first place, or the first and the last."""

    def stays(axis: str, place: int) -> bool:
        size, most = grid.sizes[axis], largest.get(axis, grid.sizes[axis])
        return most >= size or place in (0, size - 1)[:most]

    return [rank for rank in grid.ranks if all(stays(axis, getattr(grid.place(rank), axis)) for axis in AXES)]
