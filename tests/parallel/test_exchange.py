"""Rows between real processes: what arrives, in which order, and what the observer is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from loongforge.kernels.backend import select

BACKEND = select("auto")
BACKEND.activate()

import torch  # noqa: E402

from loongforge.config.schema import ParallelConfig  # noqa: E402
from loongforge.parallel.exchange import Delivery, Exchange, Message, Rows  # noqa: E402
from loongforge.parallel.groups import make_groups  # noqa: E402
from loongforge.parallel.layout import Layout  # noqa: E402
from loongforge.parallel.routes import plan_transfers  # noqa: E402
from loongforge.parallel.session import joined_world  # noqa: E402
from tests.support.ranks import RankPool  # noqa: E402
from tests.support.tiny import tiny_config  # noqa: E402

Pools = Callable[[int], RankPool]
Parts = dict[int, list[int]]
"""Row numbers by rank."""
WIDTH = 5
Plan = dict[int, tuple[Parts, Parts]]
"""Who holds and who wants which rows, by replica."""


def _layout(world: int, *, decoupled: bool) -> Layout:
    model = tiny_config().model
    if decoupled:
        model.vision.parallel = ParallelConfig(ranks=[world - 1])  # type: ignore[union-attr]
    return Layout.from_model(model, world)


def _value(replica: int, rows: list[int], salt: int = 0) -> torch.Tensor:
    """Rows `[n, 5]` whose numbers tell where they come from."""
    first = 1000 * replica + 100000 * salt + 10 * torch.tensor(rows, dtype=torch.float64)
    return first[:, None] + torch.arange(WIDTH)


def _start(exchange: Exchange, way: Any, plan: Plan, rank: int, rows: Rows, salt: int = 0) -> Delivery:
    transfers = {
        replica: plan_transfers(*({r: np.array(part, np.int64) for r, part in end.items()} for end in ends))
        for replica, ends in sorted(plan.items(), reverse=rank % 2 == 1)  # in which order they are listed is no matter
    }
    held = {replica: _value(replica, holds[rank], salt) for replica, (holds, _) in plan.items() if rank in holds}
    return exchange.start(way, transfers, held, rows)


def _exchange(plan: Plan, decoupled: bool) -> tuple[dict[int, list[list[float]]], list[Message]]:
    """What one rank receives in one exchange, and what its observer sees."""
    with joined_world(BACKEND) as world:
        groups = make_groups(_layout(world.size, decoupled=decoupled), "gloo")
        seen: list[Message] = []
        exchange = Exchange(groups, seen.append)
        rows = Rows((WIDTH,), torch.float32, torch.device("cpu"))
        delivery = _start(exchange, "forward", plan, world.rank, rows)
        found = delivery.wait()
        delivery.sent()
        assert all(part.dtype == torch.float32 and part.shape[1:] == (WIDTH,) for part in found.values())
        return {replica: part.tolist() for replica, part in found.items()}, seen


PLANS: dict[str, tuple[int, Plan]] = {
    "to a rank": (2, {0: ({0: [0, 1, 2]}, {1: [2, 0]})}),
    "both ways": (2, {0: ({0: [0, 1], 1: [2, 3]}, {0: [3, 0, 2], 1: [1]})}),
    "nothing leaves": (2, {0: ({0: [0, 1], 1: [1, 2]}, {0: [1, 0], 1: [2]})}),
    "nothing at all": (2, {0: ({0: [0, 1]}, {1: []}), 1: ({}, {})}),
    "two replicas": (2, {0: ({0: [0, 1]}, {1: [1, 0]}), 1: ({0: [0, 1], 1: [2]}, {1: [0, 2], 0: [2]})}),
    "from one to all": (4, {0: ({3: [0, 1, 2]}, {0: [0], 1: [1, 2], 2: [2, 0, 1]})}),
    "from all to all": (4, {0: ({r: [r, 4 + r] for r in range(4)}, {r: list(range(8)) for r in range(4)})}),
    "two replicas of four ranks": (
        4,
        {0: ({0: [0, 1], 1: [2]}, {0: [2, 1], 1: [0]}), 1: ({2: [0], 3: [1, 2], 0: [3]}, {2: [3, 2, 1], 3: [0]})},
    ),
}


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_wanted_rows_arrive_in_order(name: str, decoupled: bool, rank_pool: Pools) -> None:
    nproc, plan = PLANS[name]
    results = rank_pool(nproc).run(_exchange, plan, decoupled)
    for rank, (found, _) in enumerate(results):
        wanted = {replica: wants[rank] for replica, (_, wants) in plan.items() if wants.get(rank)}
        assert found == {replica: _value(replica, rows).tolist() for replica, rows in wanted.items()}


@pytest.mark.parametrize("name", PLANS)
def test_the_observer_is_told_of_what_others_have_sent(name: str, rank_pool: Pools) -> None:
    nproc, plan = PLANS[name]
    for rank, (_, seen) in enumerate(rank_pool(nproc).run(_exchange, plan, False)):
        missing = sum(len(set(wants.get(rank, ())) - set(holds.get(rank, ()))) for holds, wants in plan.values())
        assert sum(message.rows for message in seen) == missing
        for message in seen:
            assert (message.way, message.target) == ("forward", rank)
            assert message.source != rank
            assert message.bytes == message.rows * WIDTH * 4


def _in_flight() -> list[list[float]]:
    """Rank 0 sends two windows, then takes the gradients of the first before rank 1 has asked for the second."""
    with joined_world(BACKEND) as world:
        exchange = Exchange(make_groups(_layout(2, decoupled=True), "gloo"))
        there: Plan = {0: ({0: [0, 1]}, {1: [1, 0]})}
        back: Plan = {0: ({1: [1, 0]}, {0: [0, 1]})}
        rows = Rows((WIDTH,), torch.float64, torch.device("cpu"))
        if world.rank == 0:
            sent = [_start(exchange, "forward", there, 0, rows, salt) for salt in (1, 2)]
            found = [_start(exchange, "backward", back, 0, rows).wait() for _ in range(2)]
            for delivery in sent:
                delivery.sent()
        else:
            first = _start(exchange, "forward", there, 1, rows)
            found = [first.wait()]
            returning = [_start(exchange, "backward", back, 1, rows, salt=3)]
            found.append(_start(exchange, "forward", there, 1, rows).wait())
            returning.append(_start(exchange, "backward", back, 1, rows, salt=4))
            for delivery in returning:
                delivery.sent()
        return [part[0].tolist() for part in found]


def test_windows_in_flight_keep_their_order_and_ways_do_not_meet(rank_pool: Pools) -> None:
    gradients, embeddings = rank_pool(2).run(_in_flight)
    assert embeddings == [_value(0, [1, 0], salt).tolist() for salt in (1, 2)]
    assert gradients == [_value(0, [0, 1], salt).tolist() for salt in (3, 4)]


def _two_ways_to_one_rank() -> list[list[float]]:
    """Rank 0 sends embeddings, then gradients; rank 1 takes the gradients first."""
    with joined_world(BACKEND) as world:
        exchange = Exchange(make_groups(_layout(2, decoupled=True), "gloo"))
        plan: Plan = {0: ({0: [0, 1]}, {1: [1, 0]})}
        rows = Rows((WIDTH,), torch.float64, torch.device("cpu"))
        ways = ("forward", "backward") if world.rank == 0 else ("backward", "forward")
        deliveries = [_start(exchange, way, plan, world.rank, rows, salt) for salt, way in enumerate(ways)]
        found = [delivery.wait() for delivery in deliveries]
        for delivery in deliveries:
            delivery.sent()
        return [part[0].tolist() for part in found if part]


def test_gradients_do_not_queue_behind_embeddings(rank_pool: Pools) -> None:
    _, (gradients, embeddings) = rank_pool(2).run(_two_ways_to_one_rank)
    assert gradients == _value(0, [1, 0], 1).tolist()
    assert embeddings == _value(0, [1, 0], 0).tolist()


def _features() -> list[Any]:
    """Rows of two dimensions, in bf16, of a tensor that requires a gradient."""
    with joined_world(BACKEND) as world:
        exchange = Exchange(make_groups(_layout(2, decoupled=False), "gloo"))
        held = torch.arange(24.0).view(2, 3, 4).requires_grad_()
        transfers = {0: plan_transfers({0: np.arange(2)}, {0: np.array([1]), 1: np.array([1, 0])})}
        rows = Rows((3, 4), torch.bfloat16, torch.device("cpu"))
        delivery = exchange.start("forward", transfers, {0: held} if world.rank == 0 else {}, rows)
        found = delivery.wait()[0]
        delivery.sent()
        return [found.dtype, found.requires_grad, found.float().tolist()]


def test_rows_of_any_shape_and_type(rank_pool: Pools) -> None:
    whole = torch.arange(24.0).view(2, 3, 4)
    expected = [whole[1:], whole.flip(0)]
    for result, rows in zip(rank_pool(2).run(_features), expected, strict=True):
        assert result == [torch.bfloat16, False, rows.tolist()]
