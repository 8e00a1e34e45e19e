"""Which rank holds which shard of which component. Pure arithmetic: no torch, no processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from loongforge.config.errors import UserError
from loongforge.config.schema import ModelConfig, ParallelConfig
from loongforge.parallel.grid import Coordinates, Grid, divisors, nearest_divisor, ranks_text

COMPONENTS = ("vision", "projector", "llm")


@dataclass(frozen=True)
class Layout:
    """A grid of ranks for each component.

    The LLM's data-parallel replicas divide the samples. The encoder's grid lies on the LLM's ranks (colocated) or on
    ranks of its own (decoupled); its replicas divide the images of the LLM replicas that they serve.
    """

    world_size: int
    llm: Grid
    vision: Grid | None = None
    projector: Grid | None = None
    sequence_parallel: bool = False

    @classmethod
    def from_model(cls, model: ModelConfig, world_size: int) -> Layout:
        """The layout that the recipe asks for on so many ranks.

        Raises:
            UserError: the ranks cannot be divided that way; it lists everything that is wrong, and what would be legal.
        """
        found: list[str] = []
        llm_ranks, vision_ranks = _share_ranks(model, world_size, found)
        llm = _llm_grid(model.llm.parallel, llm_ranks, world_size, found)
        vision = projector = None
        if llm is not None and model.vision is not None:
            vision = _encoder_grid("vision", model.vision.parallel, vision_ranks, llm, found)
        if vision is not None and model.projector is not None and llm is not None:
            wanted = model.projector.parallel
            _check_projector_ranks(wanted, vision, found)
            if wanted.tp is None and wanted.dp is None:
                found += _llm_only_problems("projector", wanted)
                projector = vision
            else:
                projector = _encoder_grid("projector", wanted, vision_ranks, llm, found)
        if found or llm is None:
            raise UserError("The layout does not fit:\n" + "\n".join(f"  - {line}" for line in found))
        return cls(world_size, llm, vision, projector, model.llm.parallel.sequence_parallel)

    @property
    def dp(self) -> int:
        """Data-parallel size of the LLM: the number of replicas that divide the samples."""
        return self.llm.dp

    @cached_property
    def decoupled(self) -> bool:
        """The encoder lives on ranks of its own."""
        return self.vision is not None and self.vision.ranks[0] not in self.llm.ranks

    @property
    def replicas_together(self) -> int:
        """LLM replicas that have to compute at the same time, since each holds experts that the others need; they are
        neighbours, counted from 0."""
        return math.lcm(self.llm.ep, self.llm.cp) // self.llm.cp

    @property
    def sequence_multiple(self) -> int:
        """The length of every row is a multiple of this."""
        return self.llm.tp * (2 * self.llm.cp if self.llm.cp > 1 else 1)

    def grid(self, component: str) -> Grid | None:
        """Grid of `vision`, `projector` or `llm`; None where the model has no such component."""
        grid: Grid | None = getattr(self, component)
        return grid

    def text(self, component: str) -> str:
        """A component's sizes, and its ranks where they are not all: `tp2 dp1 on ranks 0-1`."""
        grid = self.grids()[component]
        return f"{grid}" + ("" if len(grid.ranks) == self.world_size else f" on {ranks_text(grid.ranks)}")

    def grids(self) -> dict[str, Grid]:
        """Grids of the components that the model has."""
        return {name: grid for name in COMPONENTS if (grid := self.grid(name)) is not None}

    def served(self, component: str, replica: int) -> range:
        """LLM replicas whose images data-parallel replica `replica` of an encoder component takes a part of."""
        grid = self.grid(component)
        assert grid is not None
        return range(replica * self.dp // grid.dp, -(-(replica + 1) * self.dp // grid.dp))

    @cached_property
    def _replicas_by_rank(self) -> dict[int, tuple[int, ...]]:
        found: dict[int, set[int]] = {rank: set() for rank in range(self.world_size)}
        for rank in self.llm.ranks:
            place = self.llm.place(rank)
            assert place is not None
            found[rank].add(place.dp)
        for name in ("vision", "projector"):
            grid = self.grid(name)
            for rank in grid.ranks if grid else ():
                place = grid.place(rank) if grid else None
                assert place is not None
                found[rank].update(self.served(name, place.dp))
        return {rank: tuple(sorted(replicas)) for rank, replicas in found.items()}

    def replicas(self, rank: int) -> tuple[int, ...]:
        """LLM replicas whose samples a rank works on: its own, and those whose images it encodes."""
        return self._replicas_by_rank[rank]

    def reporting_rank(self, replica: int) -> int:
        """The rank that speaks for an LLM replica where all of them know the same: its first."""
        return self.llm.select(tp=0, cp=0, pp=0, dp=replica)[0]

    def describe(self) -> dict[str, Any]:
        """Plain values, for checkpoints and reports."""
        grids = {name: {**grid.sizes, "ranks": list(grid.ranks)} for name, grid in self.grids().items()}
        if self.llm.ep > 1:
            grids["llm"]["ep"] = self.llm.ep
        return {"world_size": self.world_size, "sequence_parallel": self.sequence_parallel, **grids}


def _share_ranks(model: ModelConfig, world: int, found: list[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ranks of the LLM and of the encoder; either may name its own, and what one leaves out falls to the other."""
    everyone = tuple(range(world))
    llm = _named_ranks("llm", model.llm.parallel.rank_list, world, found)
    if model.vision is None:
        if llm is not None and set(llm) != set(everyone):
            found.append(f"model.llm.parallel.ranks leaves out {ranks_text(sorted(set(everyone) - set(llm)))}")
        return everyone, ()
    vision = _named_ranks("vision", model.vision.parallel.rank_list, world, found)
    if llm is None:
        rest = tuple(rank for rank in everyone if vision is None or rank not in vision)
        llm = rest or everyone  # an encoder on all ranks shares them
    if vision is None:
        vision = tuple(rank for rank in everyone if rank not in llm) or everyone
    unused = set(everyone) - set(llm) - set(vision)
    if unused:
        found.append(f"no component is on {ranks_text(sorted(unused))}; add them to model.llm.parallel.ranks")
    both = set(llm) & set(vision)
    if both and not set(vision) <= set(llm):
        found.append(
            "model.vision.parallel.ranks must lie within the LLM's ranks or share none with them; "
            f"{ranks_text(list(both))} in both, {ranks_text(sorted(set(vision) - set(llm)))} in vision only"
        )
    return llm, vision


def _named_ranks(component: str, ranks: list[int] | None, world: int, found: list[str]) -> tuple[int, ...] | None:
    if ranks is None:
        return None
    key = f"model.{component}.parallel.ranks={ranks if len(ranks) <= 8 else ranks_text(ranks)}"
    wrong = [rank for rank in ranks if not 0 <= rank < world]
    if wrong:
        found.append(f"{key}: {wrong[0]} is not a rank; allowed: 0 .. {world - 1}")
    if len(set(ranks)) < len(ranks):
        found.append(f"{key} names a rank twice")
    if not ranks:
        found.append(f"{key} is empty; use null for the default")
    if wrong or not ranks:
        return None
    return tuple(sorted(set(ranks)))


def _llm_grid(wanted: ParallelConfig, ranks: tuple[int, ...], world: int, found: list[str]) -> Grid | None:
    tp = 1 if wanted.tp is None else wanted.tp
    sizes = {"tp": tp, "pp": wanted.pp, "cp": wanted.cp, "ep": wanted.ep}
    small = [f"model.llm.parallel.{name}={size} must be at least 1" for name, size in sizes.items() if size < 1]
    found += small
    if wanted.sequence_parallel and tp == 1:
        found.append("model.llm.parallel.sequence_parallel=true needs tp of at least 2")
    if small:
        return None
    block, number = tp * wanted.pp * wanted.cp, len(ranks)
    spelled = f"tp={tp} x pp={wanted.pp}" + (f" x cp={wanted.cp}" if wanted.cp > 1 else "")
    if number % block:
        nearest = max(block, number // block * block)
        fix = f"launcher.nproc={nearest + world - number}"
        if wanted.ranks is not None:  # more or fewer processes would leave them as they are
            fix = f"{nearest} of them in model.llm.parallel.ranks"
        others = f" for the LLM ({world} processes, {world - number} of them the encoder's)" if number < world else ""
        found.append(
            f"model.llm.parallel {spelled} needs a multiple of {block} processes, not {number}{others}; nearest: {fix}"
        )
        return None
    dp = number // block
    if wanted.dp not in (None, dp):
        found.append(f"model.llm.parallel.dp={wanted.dp} does not fit: {number} processes / ({spelled}) leave dp={dp}")
    if wanted.cp * dp % wanted.ep:
        found.append(
            f"model.llm.parallel.ep={wanted.ep} does not divide the cp={wanted.cp} x dp={dp} ranks that work on "
            f"different tokens; nearest: ep={nearest_divisor(wanted.cp * dp, wanted.ep)}"
        )
    return Grid(ranks, tp, wanted.cp, wanted.pp, wanted.ep)


def _llm_only_problems(component: str, wanted: ParallelConfig) -> list[str]:
    found = []
    for name, neutral in (("pp", 1), ("cp", 1), ("ep", 1), ("sequence_parallel", False)):
        value = getattr(wanted, name)
        if value != neutral:
            shown = str(value).lower()
            found.append(f"model.{component}.parallel.{name}={shown} is for the LLM only; use tp and dp for encoders")
    return found


def _encoder_grid(
    component: str, wanted: ParallelConfig, ranks: tuple[int, ...], llm: Grid, found: list[str]
) -> Grid | None:
    found += _llm_only_problems(component, wanted)
    number, key = len(ranks), f"model.{component}.parallel"
    for name, size in (("tp", wanted.tp), ("dp", wanted.dp)):
        if size is not None and (size < 1 or number % size):
            found.append(
                f"{key}.{name}={size} does not divide the component's {number} ranks; nearest: {name}="
                f"{nearest_divisor(number, size)} (legal: {', '.join(map(str, divisors(number)))})"
            )
            return None
    tp = wanted.tp or (number // wanted.dp if wanted.dp else 1)
    if wanted.dp is not None and tp * wanted.dp != number:
        found.append(
            f"{key} tp={tp} x dp={wanted.dp} fills {tp * wanted.dp} ranks, not {number}; nearest: dp={number // tp}, "
            f"or tp={number // wanted.dp}"
        )
        return None
    return Grid(_beside(ranks, llm), tp)


def _beside(ranks: tuple[int, ...], llm: Grid) -> tuple[int, ...]:
    """Ranks ordered by LLM replica, so that an encoder replica serves the LLM replica that it shares ranks with."""

    def order(rank: int) -> tuple[int, ...]:
        place: Coordinates | None = llm.place(rank)
        return (rank,) if place is None else (place.dp, place.pp, place.cp, place.tp)

    return tuple(sorted(ranks, key=order))


def _check_projector_ranks(wanted: ParallelConfig, vision: Grid, found: list[str]) -> None:
    if wanted.rank_list is not None and set(wanted.rank_list) != set(vision.ranks):
        where = ranks_text(vision.ranks)
        found.append(f"model.projector.parallel.ranks={wanted.ranks} must be the encoder's ({where}); use null")
