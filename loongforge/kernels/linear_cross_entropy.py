"""Output layer and cross-entropy in one, without the logits `[T, vocabulary]`: pieces of the vocabulary, one by one.

The forward pass keeps the running maximum and sum of exponentials of every position (an online softmax, arXiv
1805.02867); the backward pass computes each piece's logits again. Divided by vocabulary and not by positions, each row
of the weight's gradient is written once. Where all logits fit into one piece they are kept, and nothing is done twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from loongforge.kernels.reference import real_rows, wide

PIECE = 2**22
"""Logits that are held at once: 16 MiB in float32, which also stay in the caches of a CPU."""
_NARROWEST = 512  # rows of the weight: below, a product is mostly overhead


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    vocab_size: int | None = None,
    piece: int = PIECE,
) -> torch.Tensor:
    """See `ops.linear_cross_entropy`; `piece` is the number of logits held at once."""
    divided = group is not None and group.size() > 1
    width, real = max(_NARROWEST, piece // max(1, len(hidden))), real_rows(weight, vocab_size, group)
    if divided or width < real:
        losses: torch.Tensor = _InPieces.apply(hidden, weight, targets, group if divided else None, width, real)
    else:
        losses = _InOne.apply(hidden, weight, targets, real)
    return losses


class _InOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, real: int) -> torch.Tensor:
        logs = F.log_softmax(wide(F.linear(hidden, weight[:real])), -1)
        ctx.save_for_backward(hidden, weight, targets, logs)
        ctx.real = real
        return -logs.gather(-1, targets[:, None]).squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, logs = ctx.saved_tensors
        grads = logs.exp()
        grads.scatter_add_(1, targets[:, None], torch.full_like(grads[:, :1], -1.0))
        grads = grads.mul_(grad[:, None]).to(hidden.dtype)
        for_hidden = grads @ weight[: ctx.real] if ctx.needs_input_grad[0] else None
        for_weight = _rows_like(weight, ctx.real) if ctx.needs_input_grad[1] else None
        if for_weight is not None:
            torch.mm(grads.t(), hidden, out=for_weight[: ctx.real])
        return for_hidden, for_weight, None, None


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        group: dist.ProcessGroup | None,
        width: int,
        real: int,
    ) -> torch.Tensor:
        local = targets if group is None else targets - group.rank() * len(weight)
        dtype = wide(hidden[:0]).dtype
        highest = torch.full((len(hidden),), -math.inf, dtype=dtype, device=hidden.device)
        total, target = torch.zeros_like(highest), torch.zeros_like(highest)
        for begin, logits in _pieces(hidden, weight[:real], width):
            here, place = _within(local, begin, logits.shape[1])
            target += logits.gather(1, place).squeeze(1).masked_fill_(~here, 0.0)
            higher = torch.maximum(highest, logits.amax(1))
            total = total * (highest - higher).exp_() + logits.sub_(higher[:, None]).exp_().sum(1)
            highest = higher
        if group is not None:
            highest, total, target = _over_ranks(highest, total, target, group)
        log_total = total.log_().add_(highest)
        ctx.save_for_backward(hidden, weight, local, log_total)
        ctx.group, ctx.width, ctx.real = group, width, real
        return log_total - target

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, local, log_total = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        for_hidden = torch.zeros_like(hidden, dtype=log_total.dtype) if wants_hidden else None
        for_weight = _rows_like(weight, ctx.real) if wants_weight else None
        for begin, logits in _pieces(hidden, weight[: ctx.real], ctx.width):
            end = begin + logits.shape[1]
            here, place = _within(local, begin, logits.shape[1])
            shares = logits.sub_(log_total[:, None]).exp_()
            shares.scatter_add_(1, place, -here.to(shares.dtype)[:, None])
            shares = shares.mul_(grad[:, None]).to(hidden.dtype)
            if for_hidden is not None:
                for_hidden += shares @ weight[begin:end]
            if for_weight is not None:
                torch.mm(shares.t(), hidden, out=for_weight[begin:end])
        if for_hidden is not None and ctx.group is not None:
            dist.all_reduce(for_hidden, group=ctx.group)
        return None if for_hidden is None else for_hidden.to(hidden.dtype), for_weight, None, None, None, None


def _rows_like(weight: torch.Tensor, real: int) -> torch.Tensor:
    """For the gradient: rows to be written, and behind them those of no token, which are zeros."""
    rows = torch.empty_like(weight)
    rows[real:] = 0
    return rows


def _pieces(hidden: torch.Tensor, weight: torch.Tensor, width: int) -> Iterator[tuple[int, torch.Tensor]]:
    """First row and logits `[T, width]` of each piece of this rank's vocabulary, in float32 or wider."""
    for begin in range(0, len(weight), width):
        yield begin, wide(F.linear(hidden, weight[begin : begin + width]))


def _within(local: torch.Tensor, begin: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """bool `[T]`: whose target is in a piece; int64 `[T, 1]`: its place there, or any place."""
    place = local - begin
    return (place >= 0) & (place < width), place.clamp(0, width - 1)[:, None]


def _over_ranks(
    highest: torch.Tensor, total: torch.Tensor, target: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same figures over all ranks' parts of the vocabulary."""
    everywhere = highest.clone()
    dist.all_reduce(everywhere, op=dist.ReduceOp.MAX, group=group)
    sums = torch.stack([total * (highest - everywhere).exp_(), target])  # a target is on one rank: the others add 0
    dist.all_reduce(sums, group=group)
    return everywhere, sums[0], sums[1]
