"""A checkpoint of any layout is read under any other: bit-equal parameters, and the loss goes on as if nothing was."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loongforge.config.schema import Config
from tests.parallel.matrix import Choice, matrix_config
from tests.parallel.resharding import train_between
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
STEPS = 3
ONE = Choice(1, (), ())
CHAIN = [  # each neighbours' pair is a case: all kinds of layouts, on 1 to 4 ranks
    ONE,
    Choice(4, (("tp", 2), ("pp", 2)), ()),
    Choice(4, (("tp", 2),), (("tp", 1), ("ranks", (0, 1)))),
    Choice(2, (("cp", 2),), (("tp", 2),)),
    Choice(4, (("pp", 2),), (("tp", 4),)),
    Choice(4, (("ranks", (0, 1)), ("pp", 2)), (("tp", 2), ("ranks", (2, 3)))),
    Choice(2, (("tp", 2), ("sequence_parallel", True)), ()),
    Choice(4, (), (("tp", 2),), (("tp", 1),), micro_batch_size=3),
    Choice(4, (("cp", 2),), (("ranks", (0, 1)),)),
    Choice(4, (("tp", 4),), (("tp", 2),), (("tp", 4),)),
    Choice(2, (), (("ranks", (0,)),)),
    Choice(2, (("pp", 2), ("ranks", (0, 1))), (("ranks", (0,)),)),
    Choice(4, (("tp", 2), ("cp", 2)), (("tp", 4),)),
    ONE,
]


def _config(choice: Choice, **options: Any) -> Config:
    config = choice.apply(matrix_config(**options))
    config.trainer.steps = STEPS * len(CHAIN)
    return config


def _full(ranks: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return {name: value for rank in ranks for name, value in rank[key].items()}


@pytest.mark.parametrize("options", [dict(distributed=True), dict(tie_embeddings=True)], ids=["distributed", "tied"])
def test_a_chain_of_layouts_is_one_run(options: dict[str, Any], rank_pool: Pools, tmp_path: Path) -> None:
    whole = rank_pool(1).run(train_between, _config(ONE, **options), 0, STEPS * len(CHAIN))[0]
    losses, stored, load = [], {}, None
    for number, choice in enumerate(CHAIN):
        save = tmp_path / str(number)
        save.mkdir()
        first = STEPS * number
        results = rank_pool(choice.world).run(_leg, _config(choice, **options), first, first + STEPS, load, save)
        loaded = _full(results, "loaded")
        for name, value in stored.items():
            assert np.array_equal(loaded[name], value), f"{name}, read under {choice}"
        losses += results[0]["losses"]
        stored, load = _full(results, "saved"), save
    assert len(list(pairwise(CHAIN))) >= 12
    assert np.abs(np.array(losses) - whole["losses"]).max() < 2e-5


def _leg(config: Config, first: int, last: int, load: Path | None, save: Path) -> dict[str, Any]:
    return train_between(config, first, last, load=load, save=save)
