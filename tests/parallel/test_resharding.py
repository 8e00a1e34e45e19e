"""A checkpoint of any layout is read under any other: bit-equal parameters, and the loss goes on as if nothing was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loongforge.config.schema import Config, LoraConfig
from tests.parallel.cases import train_between
from tests.parallel.matrix import Choice, matrix_config
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


ADAPTERS = LoraConfig(rank=2)
OPTIONS: dict[str, dict[str, Any]] = {
    "distributed": dict(distributed=True),
    "tied": dict(tie_embeddings=True),
    "adapters, and some weights": dict(
        distributed=True, lora=ADAPTERS, train=["embedding", "layers.2.mlp"], vision_changes=dict(train=["!layers.0"])
    ),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_chain_of_layouts_is_one_run(options: dict[str, Any], rank_pool: Pools, tmp_path: Path) -> None:
    whole, _ = rank_pool(1).run(train_between, _config(ONE, **options), range(STEPS * len(CHAIN)), None, None)[0]
    losses: list[float] = []
    stored: dict[str, Any] = {}
    load = None
    for number, choice in enumerate(CHAIN):
        save = tmp_path / str(number)
        save.mkdir()
        steps = range(STEPS * number, STEPS * (number + 1))
        ranks = rank_pool(choice.world).run(train_between, _config(choice, **options), steps, load, save)
        loaded = {name: value for _, part in ranks for name, value in part.items()}
        for name, value in stored.items():
            assert np.array_equal(loaded[name], value), f"{name}, read under {choice}"
        losses += ranks[0][0].losses
        stored, load = {name: value for rank, _ in ranks for name, value in rank.parameters.items()}, save
    assert len(CHAIN) > 12
    assert np.abs(np.array(losses) - whole.losses).max() < 2e-5


PADDED = [
    Choice(4, (("tp", 4),), ()),
    ONE,
    Choice(4, (("tp", 2), ("pp", 2)), ()),
    Choice(4, (("tp", 4), ("sequence_parallel", True)), ()),
]


@pytest.mark.parametrize("options", [dict(distributed=True), dict(tie_embeddings=True)], ids=["distributed", "tied"])
def test_a_vocabulary_is_padded_anew_by_each_layout(options: dict[str, Any], rank_pool: Pools, tmp_path: Path) -> None:
    options = dict(vocab_size=257, **options)
    whole, _ = rank_pool(1).run(train_between, _config(ONE, **options), range(STEPS * len(PADDED)), None, None)[0]
    losses: list[float] = []
    load = None
    for number, choice in enumerate(PADDED):
        save = tmp_path / str(number)
        save.mkdir()
        steps = range(STEPS * number, STEPS * (number + 1))
        ranks = rank_pool(choice.world).run(train_between, _config(choice, **options), steps, load, save)
        losses, load = losses + ranks[0][0].losses, save
    assert np.abs(np.array(losses) - whole.losses).max() < 2e-5
