"""Any layout answers and scores as one process does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.inference.cases import infer
from tests.parallel.matrix import Choice, layouts, matrix_config
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]

BATCH = 8 // 2
"""Micro-batches of the scored samples: the number of replicas divides them."""
CHOICES = [choice for choice in layouts(2) if BATCH % choice.layout().dp == 0]
MMCA = [choice for choice in CHOICES if any(size > 1 for name, size in choice.llm if name in ("tp", "pp", "cp"))][::2]
SOME_OF_4 = [choice for choice in layouts(4) if BATCH % choice.layout().dp == 0][::6]


OPTIONS: dict[str, dict[str, Any]] = {
    "causal": dict(tie_embeddings=True),
    "mmca": dict(attention="mmca"),
    "window": dict(sliding_window=6, window_layers=[0, 2, 3]),
    "experts": dict(num_experts=8),
}
OTHERS = [
    (Choice(2, (("cp", 2),), ()), "window"),
    (Choice(4, (("tp", 2), ("pp", 2)), ()), "window"),
    (Choice(2, (("ep", 2),), ()), "experts"),
    (Choice(4, (("ep", 2),), ()), "experts"),
    (Choice(4, (("tp", 2), ("ep", 2)), ()), "experts"),
    (Choice(4, (("cp", 2), ("ep", 4)), ()), "experts"),
]


@pytest.fixture(scope="module")
def one_process() -> Iterator[dict[str, Any]]:
    with RankPool(1) as pool:
        yield {name: pool.run(infer, matrix_config(**options))[0] for name, options in OPTIONS.items()}


@pytest.mark.parametrize(
    ("choice", "attention"),
    [*((choice, "causal") for choice in (*CHOICES, *SOME_OF_4)), *((choice, "mmca") for choice in MMCA), *OTHERS],
    ids=str,
)
def test_layout_equals_one_process(
    choice: Choice, attention: str, one_process: dict[str, Any], rank_pool: Pools
) -> None:
    one_process = one_process[attention]
    ranks = rank_pool(choice.world).run(infer, choice.apply(matrix_config(**OPTIONS[attention])))
    for rank in ranks:
        assert rank["answers"] == one_process["answers"]
        assert rank["drawn"] == one_process["drawn"]
        assert rank["summary"] == pytest.approx(one_process["summary"], abs=1e-5)
        assert rank["training"]
    scores = ranks[0]["scores"]
    assert len(scores) == len(one_process["scores"]) == 16
    for (name, logprobs, exact), (name_1, logprobs_1, exact_1) in zip(scores, one_process["scores"], strict=True):
        assert (name, exact) == (name_1, exact_1)
        assert np.allclose(logprobs, logprobs_1, atol=1e-5)


@pytest.mark.parametrize("attention", OPTIONS)
def test_the_reference_is_not_trivial(attention: str, one_process: dict[str, Any]) -> None:
    found = one_process[attention]
    assert len({tuple(answer) for answer in found["answers"]}) == 6
    assert len({tuple(answer) for answer in found["drawn"]}) == 5
    assert found["drawn"] != [answer[:5] for answer in found["answers"][:5]]
    assert found["summary"]["samples"] == 16
    assert found["summary"]["label_tokens"] == sum(len(logprobs) for _, logprobs, _ in found["scores"])
    assert one_process["causal"]["answers"] != one_process["mmca"]["answers"]
