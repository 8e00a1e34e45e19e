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
SOME_OF_4 = [choice for choice in layouts(4) if BATCH % choice.layout().dp == 0][::6]


@pytest.fixture(scope="module")
def one_process() -> Iterator[dict[str, Any]]:
    with RankPool(1) as pool:
        yield pool.run(infer, matrix_config(tie_embeddings=True))[0]


@pytest.mark.parametrize("choice", [*CHOICES, *SOME_OF_4], ids=str)
def test_layout_equals_one_process(choice: Choice, one_process: dict[str, Any], rank_pool: Pools) -> None:
    ranks = rank_pool(choice.world).run(infer, choice.apply(matrix_config(tie_embeddings=True)))
    for rank in ranks:
        assert rank["answers"] == one_process["answers"]
        assert rank["summary"] == pytest.approx(one_process["summary"], abs=1e-5)
        assert rank["training"]
    scores = ranks[0]["scores"]
    assert len(scores) == len(one_process["scores"]) == 16
    for (name, logprobs, exact), (name_1, logprobs_1, exact_1) in zip(scores, one_process["scores"], strict=True):
        assert (name, exact) == (name_1, exact_1)
        assert np.allclose(logprobs, logprobs_1, atol=1e-5)


def test_the_reference_is_not_trivial(one_process: dict[str, Any]) -> None:
    assert len({tuple(answer) for answer in one_process["answers"]}) == 6
    assert one_process["summary"]["samples"] == 16
    assert one_process["summary"]["label_tokens"] == sum(len(logprobs) for _, logprobs, _ in one_process["scores"])
