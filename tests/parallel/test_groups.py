"""Groups are made together."""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

from loongforge.parallel import groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402
from tests.support.ranks import RankPool  # noqa: E402
from tests.support.tiny import tiny_config  # noqa: E402


def _make() -> tuple[float, float]:
    """When this rank had made its groups, which takes rank 1 a second longer, and when it went on."""
    seed, made = groups.model_parallel_cuda_manual_seed, 0.0
    with joined_world(BACKEND) as world:

        def slowly(*args: int, **options: int) -> None:
            nonlocal made
            seed(*args, **options)
            time.sleep(world.rank == 1)
            made = time.monotonic()

        with mock.patch.object(groups, "model_parallel_cuda_manual_seed", slowly):
            groups.make_groups(Layout.from_model(tiny_config().model, world.size), BACKEND.dist_backend)
        return made, time.monotonic()


def test_no_rank_goes_on_before_all_have_theirs(rank_pool: Callable[[int], RankPool]) -> None:
    """One that ended at once would break the connections that another is still making."""
    made, went_on = zip(*rank_pool(3).run(_make), strict=True)
    assert min(went_on) >= max(made)
