"""The load of experts over a whole step: counted before the loss that evens it out needs it, and reported."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from loongforge.components.transformer.router_spec import RouterSpec
from loongforge.components.transformer.routing import Routing
from loongforge.kernels.backend import widest_dtype
from loongforge.parallel.groups import Groups
from loongforge.parallel.session import sum_over_world


@dataclass(frozen=True)
class ExpertBalance:
    """Of a step."""

    loss: float
    """Load-balance loss of the global batch, before its weight: `per_token` where load and probabilities are even."""
    imbalance: float
    """Most tokens of an expert over the mean of its layer's experts, in the layer where that is largest."""


class ExpertCounts:
    """What one rank does for it.

    Args:
        spec: Of the LLM; the same on every rank of the world.
        routing: The record of this rank's routers; None: it holds no part of the LLM.
        groups: Of all components.
        device: Of this process.
    """

    def __init__(self, spec: RouterSpec, routing: Routing | None, groups: Groups, device: torch.device) -> None:
        self.spec, self.routing, self.groups, self.device = spec, routing, groups, device

    def begin(self) -> None:
        """Before a step."""
        if self.routing is not None:
            self.routing.loads = None
            self.routing.clear()

    def noting(self) -> AbstractContextManager[None]:
        """Around a forward pass that counts."""
        return contextlib.nullcontext() if self.routing is None else self.routing.noting()

    def settle_in_time(self) -> None:
        """After the forward pass of the step's only micro-batch: its backward pass can still be told. Collective over
        the LLM's ranks."""
        if self.spec.loss_weight > 0 and self.routing is not None and self.routing.loads is None:
            self.settle()

    def forget(self) -> None:
        """After a pass of its own: what trains is counted anew."""
        if self.routing is not None:
            self.routing.clear()

    def settle(self) -> None:
        """Adds up what all ranks of the LLM have counted. Collective over them."""
        routing, groups = self.routing, self.groups.llm
        if routing is None or groups is None:
            return
        loads = routing.noted(self.device)[0].sum(0)
        for group in (groups.dp_cp, groups.pp):
            if group.size() > 1:
                dist.all_reduce(loads, group=group)
        routing.loads = loads

    def figures(self) -> ExpertBalance:
        """Of the last step. Collective over the world."""
        rows = torch.zeros(self.spec.layers, self.spec.experts, dtype=torch.int64, device=self.device)
        sums = torch.zeros_like(rows, dtype=torch.float32)
        place = self.groups.place
        if self.routing is not None and place is not None and place.tp == 0:  # the others have seen the same
            rows, sums = self.routing.noted(self.device)
        taken, probabilities = sum_over_world(torch.stack([rows.to(widest_dtype()), sums.to(widest_dtype())]))
        return _figures(taken.double().cpu(), probabilities.double().cpu(), self.spec)


def _figures(taken: torch.Tensor, probabilities: torch.Tensor, spec: RouterSpec) -> ExpertBalance:
    """From `[layers, experts]` of the whole step; layers without experts are zeros."""
    tokens = max(taken.sum().item() / spec.per_token, 1.0)
    loss = spec.experts * (taken.sum(0) * probabilities.sum(0)).sum().item() / tokens**2
    means = taken.mean(1)
    return ExpertBalance(loss, (taken.max(1).values / means.clamp(min=1e-9)).max().item())
