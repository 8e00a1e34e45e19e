"""Traffic that there should not be; the tests of the traffic must see each. Imported by ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from loongforge.kernels.backend import select

select("auto").activate()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from loongforge.model.encoding import Bridge  # noqa: E402
from loongforge.model.windows import Window  # noqa: E402
from loongforge.parallel.exchange import Delivery, Exchange  # noqa: E402
from loongforge.parallel.routes import Transfer, plan_transfers  # noqa: E402

Rows = dict[int, torch.Tensor]


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """Training with a mistake; an empty name is none. They assume one LLM replica."""
    deliver, post, init = Bridge.deliver, Exchange._post, Bridge.__init__
    faults: dict[str, tuple[type, str, Callable[..., Any]]] = {
        "twice": (Exchange, "_post", lambda *call: post(*call) + post(*call)),
        "shifted": (Exchange, "_post", _shifted(post)),
        "untold": (Exchange, "_post", _untold(post)),
        "needless": (Bridge, "deliver", _first(_to_the_next_rank, deliver)),
        "whole sequences": (Bridge, "deliver", _first(_text, deliver)),
        "gathered": (Bridge, "deliver", _first(_gather, deliver)),
        "relay": (Bridge, "deliver", _through_rank_0),
        "frozen": (Bridge, "__init__", _always_returning(init)),
    }
    with mock.patch.object(*faults[fault]) if fault else contextlib.nullcontext():
        yield


def _shifted(post: Callable[..., Any]) -> Callable[..., Any]:
    def shifted(exchange: Exchange, way: str, replica: int, transfer: Transfer, *rest: Any) -> Any:
        return post(exchange, way, replica, replace(transfer, source_rows=np.roll(transfer.source_rows, 1)), *rest)

    return shifted


def _untold(post: Callable[..., Any]) -> Callable[..., Any]:
    def untold(exchange: Exchange, way: str, *rest: Any) -> Any:
        if way == "backward":
            exchange.observe = None
        return post(exchange, way, *rest)

    return untold


def _always_returning(init: Callable[..., None]) -> Callable[..., None]:
    def always(bridge: Bridge, *rest: Any) -> None:
        init(bridge, *rest)
        bridge.returns = True

    return always


def _first(more: Callable[[Bridge, Window, Rows], None], deliver: Callable[..., Delivery]) -> Callable[..., Delivery]:
    def both(bridge: Bridge, window: Window, rows: Rows) -> Delivery:
        more(bridge, window, rows)
        return deliver(bridge, window, rows)

    return both


def _carry(bridge: Bridge, transfers: list[Transfer], held: Rows) -> Rows:
    delivery = bridge.exchange.start("forward", {0: transfers}, held, bridge.rows)
    found = delivery.wait()
    delivery.sent()
    return found


def _to_the_next_rank(bridge: Bridge, window: Window, rows: Rows) -> None:
    ways = window.images[0].to_llm
    _carry(bridge, [replace(way, target=(way.target + 2) % dist.get_world_size()) for way in ways], rows)


def _text(bridge: Bridge, window: Window, rows: Rows) -> None:
    """As many rows as there are tokens, of what would be whole embedded samples."""
    tokens = np.arange(window.images[0].micro_batches[0].tokens.numel())
    ways = [replace(way, source_rows=tokens, target_rows=tokens) for way in window.images[0].to_llm]
    _carry(bridge, ways, {0: torch.zeros(len(tokens), *bridge.rows.shape)})


def _gather(bridge: Bridge, window: Window, rows: Rows) -> None:
    mine = torch.zeros(8, *bridge.rows.shape)
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.gather(mine, everyone if bridge.rank == 0 else None)


def _through_rank_0(bridge: Bridge, window: Window, rows: Rows) -> Delivery:
    images = window.images[0]
    everything = {0: np.arange(images.num_rows)}
    collected = _carry(bridge, plan_transfers(images._made, everything), rows)
    return bridge.exchange.start("forward", {0: plan_transfers(everything, images._merged)}, collected, bridge.rows)
