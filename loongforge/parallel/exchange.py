"""Moves rows of tensors between ranks, point to point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist

from loongforge.kernels.phases import PhaseClock
from loongforge.kernels.tools import DeviceTools
from loongforge.parallel.groups import Groups
from loongforge.parallel.routes import Transfer

Way = Literal["forward", "backward"]


@dataclass(frozen=True)
class Message:
    """What a rank has been sent."""

    way: Way
    source: int
    target: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Rows:
    """What all rows of an exchange look like."""

    shape: tuple[int, ...]
    """Of one row."""
    dtype: torch.dtype
    device: torch.device


@dataclass
class Delivery:
    """Messages on their way. Keep it until `wait` and `sent` have returned: it holds their buffers."""

    target_sizes: dict[int, int]
    """Rows that this rank is to have of each replica."""
    rows: Rows
    phases: PhaseClock
    local: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Replica, rows and their places, of what this rank keeps."""
    incoming: list[tuple[int, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """The same of what it receives."""
    outgoing: list[torch.Tensor] = field(default_factory=list)
    receives: list[dist.Work] = field(default_factory=list)
    sends: list[dist.Work] = field(default_factory=list)

    def wait(self) -> dict[int, torch.Tensor]:
        """This rank's rows `[n, ...]` by replica, when all have arrived; nothing of replicas that it wants none of."""
        with self.phases("bridge"):
            return self._wait()

    def _wait(self) -> dict[int, torch.Tensor]:
        for work in self.receives:
            work.wait()
        found = {}
        for replica, size in self.target_sizes.items():
            parts = [(rows, places) for owner, rows, places in self.local + self.incoming if owner == replica]
            whole = torch.empty((size, *self.rows.shape), dtype=self.rows.dtype, device=self.rows.device)
            for rows, places in parts:
                whole[places] = rows
            found[replica] = whole
        self.local, self.incoming = [], []
        return found

    def sent(self) -> None:
        """Returns when what this rank sends has left it."""
        with self.phases("bridge"):
            for work in self.sends:
                work.wait()
            self.outgoing = []


class Exchange:
    """Point-to-point messages of one rank.

    Args:
        groups: Of the run.
        observe: Called with every message that this rank receives from another.
        phases: Times the exchange.
    """

    def __init__(
        self,
        groups: Groups,
        observe: Callable[[Message], None] | None = None,
        phases: PhaseClock | None = None,
    ) -> None:
        self.phases = phases or PhaseClock(DeviceTools())
        self.rank = groups.rank
        self.groups = {"forward": groups.forward, "backward": groups.backward}
        self.observe = observe

    def start(
        self, way: Way, transfers: Mapping[int, Sequence[Transfer]], held: Mapping[int, torch.Tensor], rows: Rows
    ) -> Delivery:
        """Posts this rank's part of some transfers and returns at once.

        Every rank that takes part makes the same calls in the same order.

        Args:
            way: Forward carries activations, backward their gradients.
            transfers: By LLM replica; of all that this rank works on.
            held: What this rank holds of each replica, `[n, ...]`.
            rows: Of the exchange.
        """
        delivery, ops = Delivery({}, rows, self.phases), []
        for replica in sorted(transfers):
            mine = [t for t in transfers[replica] if self.rank in (t.source, t.target)]
            wanted = sum(len(t.target_rows) for t in mine if t.target == self.rank)
            if wanted:
                delivery.target_sizes[replica] = wanted
            for transfer in mine:
                ops += self._post(way, replica, transfer, held, delivery)
        if ops:
            # one call: a backend whose messages need both ends at once may order them as it likes
            works = dist.batch_isend_irecv(ops)
            apart = len(works) == len(ops)  # NCCL makes one piece of work of them all
            delivery.receives = [w for i, w in enumerate(works) if not apart or ops[i].op is dist.irecv]
            delivery.sends = [w for i, w in enumerate(works) if not apart or ops[i].op is dist.isend]
        return delivery

    def _post(
        self, way: Way, replica: int, transfer: Transfer, held: Mapping[int, torch.Tensor], delivery: Delivery
    ) -> list[dist.P2POp]:
        rows, group = delivery.rows, self.groups[way]
        places = torch.from_numpy(transfer.target_rows).to(rows.device)
        if transfer.target == self.rank and transfer.source != self.rank:
            buffer = torch.empty((len(places), *rows.shape), dtype=rows.dtype, device=rows.device)
            delivery.incoming.append((replica, buffer, places))
            if self.observe is not None:
                size = buffer.numel() * buffer.element_size()
                self.observe(Message(way, transfer.source, self.rank, len(places), size))
            return [dist.P2POp(dist.irecv, buffer, transfer.source, group)]
        taken = held[replica].detach()[torch.from_numpy(transfer.source_rows).to(rows.device)].to(rows.dtype)
        if transfer.target == self.rank:
            delivery.local.append((replica, taken, places))
            return []
        delivery.outgoing.append(taken)
        return [dist.P2POp(dist.isend, taken, transfer.target, group)]
