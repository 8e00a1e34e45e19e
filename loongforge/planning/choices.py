"""Every layout that a recipe could have on so many ranks, found by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from itertools import product
from math import log2

from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import Config, ModelConfig, ParallelConfig
from loongforge.model.checks import longest_sample, micro_batch_size, problems
from loongforge.parallel.grid import Grid, divisors
from loongforge.parallel.layout import COMPONENTS, Layout

_FEW_TOKENS = 8
"""Context-parallel ranks are not offered where each would hold less of a sample than twice this."""

_MANY_RANKS, _SOME = 64, 24
"""On more ranks, so many sizes of a decoupled encoder are offered: those nearest to a given one."""
_FEW_RANKS = 4
"""From so many on they are named by the first and the last."""


@dataclass(frozen=True)
class Choice:
    """Sizes of a layout."""

    llm: ParallelConfig
    vision: ParallelConfig | None
    layout: Layout
    """Its sizes; `Layout.from_model` orders the ranks of a colocated encoder as the LLM's replicas lie."""

    def model(self, model: ModelConfig) -> ModelConfig:
        """The model with this layout; the projector follows the encoder."""
        parts = {"llm": self.llm, "vision": self.vision, "projector": ParallelConfig()}
        changed = {
            name: replace(getattr(model, name), parallel=parts[name])
            for name in COMPONENTS
            if getattr(model, name) is not None
        }
        return replace(model, **changed)

    def config(self, config: Config, **trainer: object) -> Config:
        """The recipe with this layout, and other keys of its trainer."""
        found = copy(config)
        found.model = self.model(config.model)
        found.trainer = replace(config.trainer, **trainer)  # type: ignore[arg-type]
        return found


def overrides(config: Config, wanted: Config) -> list[str]:
    """What to add to the command that gave `config` to get the layout and micro-batches of `wanted`."""
    found = []
    for name in reversed(COMPONENTS):
        before, after = getattr(config.model, name), getattr(wanted.model, name)
        if before is None:
            continue
        for item in fields(ParallelConfig):
            old, new = getattr(before.parallel, item.name), getattr(after.parallel, item.name)
            # a projector without tp follows the encoder
            implied = (
                name != "projector" and item.name == "tp" and before.parallel.dp is None and (old or 1) == (new or 1)
            )
            if old != new and not implied:
                found.append(f"model.{name}.parallel.{item.name}={_spell(new)}")
    for section, key in (("trainer", "micro_batch_size"), ("trainer", "recompute"), ("optimizer", "distributed")):
        old, new = (getattr(getattr(one, section), key) for one in (config, wanted))
        if old != new:
            found.append(f"{section}.{key}={_spell(new)}")
    return found


def _spell(value: object) -> str:
    return "null" if value is None else str(value).lower().replace(" ", "")


def legal_choices(config: Config, world: int, *, tokens: int, decoupled_ranks: float = 1) -> Iterator[Choice]:
    """Layouts that fit the model and divide the global batch: the LLM with any TP, PP, CP and DP, with and without
    sequence parallelism; the encoder with any TP on all of its ranks, on its first stage, or on ranks of its own. The
    projector has the encoder's layout.

    Args:
        config: The recipe; its layout is not read.
        world: Ranks.
        tokens: Of a sample; bounds the context-parallel size.
        decoupled_ranks: Ranks of an encoder of its own that the offered ones are near to, where there are too many.
    """
    alone = ParallelConfig()
    if config.model.vision is None:
        yield from (Choice(llm, None, layout) for llm, layout in _llm_layouts(config, world, world, tokens))
        return
    for llm, layout in _llm_layouts(config, world, world, tokens):
        yield from _colocated(config.model, llm, layout)
    offered = 0
    for number in sorted(range(1, world), key=lambda number: _ratio(number, max(1, round(decoupled_ranks)))):
        if offered == _SOME and world > _MANY_RANKS:
            break
        tps, llms = _encoder_tps(config.model, number), list(_llm_layouts(config, world, world - number, tokens))
        offered += bool(llms)
        for llm, layout in llms:
            ranks = range(world - number, world)
            for tp in tps:
                grid = Grid(tuple(ranks), tp)
                vision = replace(alone, tp=tp, ranks=_named(ranks))
                yield Choice(llm, vision, replace(layout, vision=grid, projector=grid))


def _llm_layouts(config: Config, world: int, number: int, tokens: int) -> Iterator[tuple[ParallelConfig, Layout]]:
    llm, batch = config.model.llm, config.trainer.global_batch_size
    assert isinstance(llm, LLMConfig)
    ranks = tuple(range(number))
    tps = [tp for tp in divisors(number) if tp <= _largest(llm, number) and not llm.problems(tp, 1)]
    pps = [pp for pp in divisors(number) if pp <= llm.num_layers]
    cps = [cp for cp in divisors(number) if cp == 1 or tokens >= 2 * _FEW_TOKENS * cp]
    for tp, pp, cp in product(tps, pps, cps):
        block = tp * pp * cp
        if number % block or batch % (number // block):
            continue
        eps = [ep for ep in divisors(number // (tp * pp)) if not llm.problems(tp, pp, ep)]
        for ep, split in product(eps, (False, True)[: 1 + (tp > 1)]):
            parallel = ParallelConfig(tp=tp, pp=pp, cp=cp, ep=ep, sequence_parallel=split)
            yield parallel, Layout(world, Grid(ranks, tp, cp, pp, ep), sequence_parallel=split)


def _largest(llm: LLMConfig, number: int) -> int:
    """No tensor-parallel size above the width can divide a model."""
    return min(number, llm.hidden_size)


def _colocated(model: ModelConfig, llm: ParallelConfig, layout: Layout) -> Iterator[Choice]:
    world, ranks = layout.world_size, layout.llm.ranks
    for tp in _encoder_tps(model, world):
        grid = Grid(ranks, tp)
        yield Choice(llm, ParallelConfig(tp=tp), replace(layout, vision=grid, projector=grid))
    if layout.llm.pp == 1:
        return
    first = ranks[: world // layout.llm.pp]
    explicit = replace(llm, ranks=_named(ranks))
    for tp in _encoder_tps(model, len(first)):
        grid = Grid(first, tp)
        yield Choice(explicit, ParallelConfig(tp=tp, ranks=_named(first)), replace(layout, vision=grid, projector=grid))


def _named(ranks: Sequence[int]) -> list[int] | str:
    """Neighbouring ranks as a recipe names them."""
    return list(ranks) if len(ranks) < _FEW_RANKS else f"{ranks[0]}-{ranks[-1]}"


def _encoder_tps(model: ModelConfig, number: int) -> list[int]:
    vision, projector, llm = model.vision, model.projector, model.llm
    assert isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig) and isinstance(llm, LLMConfig)
    sizes = {"input_size": vision.output_size, "output_size": llm.hidden_size}
    return [
        tp
        for tp in divisors(number)
        if tp <= vision.output_size and not vision.problems(tp) and not projector.problems(tp, **sizes)
    ]


def nearest_choices(config: Config, world: int, *, number: int = 3) -> list[Config]:
    """The recipe with those accepted layouts that differ least from what it asks for, by the ratios of their sizes.

    Empty where the recipe's own layout is accepted: then something else is wrong with it.
    """
    model = config.model
    llm, vision = model.llm.parallel, model.vision.parallel if model.vision else None
    wanted_ranks = len(vision.rank_list or range(world)) if vision is not None else world

    def distance(choice: Choice) -> float:
        found = _ratio(choice.llm.tp, llm.tp) + _ratio(choice.llm.pp, llm.pp) + _ratio(choice.llm.cp, llm.cp)
        found += 0.1 * (choice.llm.sequence_parallel != (llm.sequence_parallel and choice.layout.llm.tp > 1))
        if vision is not None and choice.vision is not None:
            grid = choice.layout.grids()["vision"]
            found += _ratio(choice.vision.tp, vision.tp) + _ratio(len(grid.ranks), wanted_ranks)
            found += choice.layout.decoupled and vision.ranks is None
        return found

    found: list[Config] = []
    offered = legal_choices(config, world, tokens=longest_sample(config), decoupled_ranks=wanted_ranks)
    for choice in sorted(offered, key=distance):
        wanted = choice.config(config, **micro_batch(config, choice.layout))
        if not overrides(config, wanted):
            return []
        if not problems(wanted, Layout.from_model(wanted.model, world)):
            found.append(wanted)
        if len(found) == number:
            break
    return found


def micro_batch(config: Config, layout: Layout) -> dict[str, object]:
    """`micro_batch_size` of the trainer where the recipe's does not divide a replica's share: the next smaller one."""
    share, asked = config.trainer.global_batch_size // layout.dp, micro_batch_size(config, layout)
    if config.packing.enabled or share % asked == 0:
        return {}
    return {"micro_batch_size": max(size for size in divisors(share) if size <= asked)}


def _ratio(size: int | None, wanted: int | None) -> float:
    return abs(log2((size or 1) / max(1, wanted or 1)))
