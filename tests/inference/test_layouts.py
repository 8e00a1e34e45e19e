"""Any layout answers and scores as one process does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from loongforge.config.schema import ParallelConfig
from tests.inference.cases import infer
from tests.support.ranks import RankPool
from tests.support.tiny import tiny_config

Pools = Callable[[int], RankPool]

CASES = {
    "tp2": (2, ParallelConfig(tp=2)),
    "tp2 sp": (2, ParallelConfig(tp=2, sequence_parallel=True)),
    "dp2": (2, ParallelConfig()),
    "pp2": (2, ParallelConfig(pp=2)),
    "tp2 dp2 sp": (4, ParallelConfig(tp=2, sequence_parallel=True)),
    "pp2 tp2": (4, ParallelConfig(tp=2, pp=2)),
    "pp2 dp2": (4, ParallelConfig(pp=2)),
}


@pytest.fixture(scope="module")
def one_process() -> Iterator[dict[str, Any]]:
    with RankPool(1) as pool:
        yield pool.run(infer, tiny_config(tie_embeddings=True))[0]


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(name: str, one_process: dict[str, Any], rank_pool: Pools) -> None:
    nproc, parallel = CASES[name]
    ranks = rank_pool(nproc).run(infer, tiny_config(parallel=parallel, tie_embeddings=True))
    for rank in ranks:
        assert rank["answers"] == one_process["answers"]
        assert rank["summary"] == pytest.approx(one_process["summary"], abs=1e-5)
        assert rank["training"]
    scores = ranks[0]["scores"]
    assert len(scores) == len(one_process["scores"]) == 16
    for (name_, logprobs, exact), (name_1, logprobs_1, exact_1) in zip(scores, one_process["scores"], strict=True):
        assert (name_, exact) == (name_1, exact_1)
        assert np.allclose(logprobs, logprobs_1, atol=1e-5)


def test_the_reference_is_not_trivial(one_process: dict[str, Any]) -> None:
    assert len({tuple(answer) for answer in one_process["answers"]}) == 6
    assert one_process["summary"]["samples"] == 16
    assert one_process["summary"]["label_tokens"] == sum(len(logprobs) for _, logprobs, _ in one_process["scores"])
