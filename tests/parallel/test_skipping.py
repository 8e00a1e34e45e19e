"""A step with a gradient that is not finite is skipped by every component on every rank, wherever it came up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.parallel.cases import step_with_nan
from tests.parallel.matrix import Choice, matrix_config
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]

PLACES = {
    "vision of a colocated rank": (Choice(4, (("tp", 2),), (("tp", 1),)), "vision", 3),
    "vision of a decoupled rank": (Choice(4, (("tp", 2),), (("ranks", (0, 1)),)), "vision", 1),
    "llm beside a decoupled encoder": (Choice(4, (("cp", 2),), (("ranks", (0, 1)),)), "llm", 3),
    "llm of the second stage": (Choice(4, (("pp", 2),), (("tp", 2),)), "llm", 2),
    "projector": (Choice(2, (("tp", 2),), (("tp", 1),)), "projector", 0),
}


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distributed"])
@pytest.mark.parametrize("place", PLACES)
def test_all_skip_together(place: str, distributed: bool, rank_pool: Pools) -> None:
    choice, component, rank = PLACES[place]
    config = choice.apply(matrix_config(distributed=distributed))
    for skipped, unchanged, moves in rank_pool(choice.world).run(step_with_nan, config, component, rank):
        assert skipped
        assert unchanged
        assert moves
