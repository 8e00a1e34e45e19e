"""What holds for all tests: no network, few threads, and pools of ranks for multi-process tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

# Before any import of torch or transformers, here and in every process that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.support.ranks import RankPool

settings.register_profile("any machine", deadline=None)  # a busy one is no fault of the code
settings.load_profile("any machine")


LONG_FILES = [
    *("parallel/test_layout_matrix.py", "docs/test_commands.py", "scripts/test_bench.py", "training/test_resume.py"),
    *("parallel/test_training_parity.py", "parallel/test_expert_parity.py", "parallel/test_resharding.py"),
    *("hf/test_parity.py", "training/test_packing.py", "cluster/test_launch.py", "training/test_trainer.py"),
    *("training/conformance/test_stages.py", "emul/test_runs.py", "training/test_layouts.py"),
]
"""Those that take minutes, longest first: one that began last would keep a single worker busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the others as they come."""
    ranks = {str(Path(__file__).parent / name): rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(ranks)))


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
