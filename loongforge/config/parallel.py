"""How a component is spread over ranks, as a recipe says it."""

from __future__ import annotations

from dataclasses import dataclass


def parse_ranks(text: str) -> list[int]:
    """`0-3,8` as a list.

    Raises:
        ValueError: it is not written like that.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        found += range(int(first), int(last if dash else first) + 1)
    return found


@dataclass(kw_only=True)
class ParallelConfig:
    """How one component is spread over ranks; `null` follows from the others."""

    tp: int | None = None
    """Tensor-parallel size; null: 1, or what `dp` leaves."""
    pp: int = 1
    """Pipeline stages (LLM only)."""
    cp: int = 1
    """Context-parallel size: ranks that divide the sequence (LLM only)."""
    ep: int = 1
    """Expert-parallel size: ranks of the `cp` x `dp` that divide the experts of each layer (LLM with experts only)."""
    dp: int | None = None
    """Data-parallel size; null: follows from the number of processes."""
    sequence_parallel: bool = False
    """Shard activations between tensor-parallel regions along the sequence (LLM only)."""
    ranks: list[int] | str | None = None
    """Ranks that hold the component, as a list or like 0-3 or 0-3,8; null: all, or those that the other component
    leaves. The projector is where the encoder is."""

    @property
    def rank_list(self) -> list[int] | None:
        """`ranks` one by one."""
        return parse_ranks(self.ranks) if isinstance(self.ranks, str) else self.ranks
