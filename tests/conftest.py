"""What holds for all tests: no network, few threads, and pools of ranks for multi-process tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

# Before any import of torch or transformers, here and in every process that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.support.ranks import RankPool

settings.register_profile("any machine", deadline=None)  # a busy one is no fault of the code
settings.load_profile("any machine")


@pytest.fixture(scope="module")
def rank_pool() -> Iterator[Callable[[int], RankPool]]:
    """`rank_pool(4).run(function, *args)`: the processes are shared by the tests of a file."""
    pools: dict[int, RankPool] = {}
    with ExitStack() as stack:

        def pool(nproc: int) -> RankPool:
            if nproc not in pools:
                pools[nproc] = stack.enter_context(RankPool(nproc))
            return pools[nproc]

        yield pool
