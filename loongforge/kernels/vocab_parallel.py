"""Cross-entropy over a vocabulary that is divided over tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


class _VocabParallelLosses(torch.autograd.Function):
    """Losses from the ranks' parts of the logits: two small all-reduces, none of the size of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        highest = logits.max(-1).values
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - highest[:, None]
        local = targets - group.rank() * logits.shape[-1]
        here = (local >= 0) & (local < logits.shape[-1])
        local = local.clamp(0, logits.shape[-1] - 1)
        target = shifted.gather(-1, local[:, None]).squeeze(-1).masked_fill(~here, 0.0)
        weights = shifted.exp_()
        sums = torch.stack([weights.sum(-1), target])  # each target is on one rank: the others add 0
        dist.all_reduce(sums, group=group)
        ctx.save_for_backward(weights.div_(sums[0][:, None]), local, here)
        return sums[0].log() - sums[1]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        probabilities, local, here = ctx.saved_tensors
        grad = probabilities.clone()
        grad[torch.arange(len(local), device=local.device), local] -= here.to(grad.dtype)
        return grad.mul_(grads[0][:, None]), None, None


def vocab_parallel_losses(logits: torch.Tensor, targets: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Cross-entropy of each position in nats, the same on every rank of the group.

    Args:
        logits: `[T, vocabulary / tp]`, this rank's part of the vocabulary.
        targets: int64 `[T]`, over the whole vocabulary.
        group: Tensor-parallel ranks.

    Returns:
        float32 `[T]`.
    """
    losses: torch.Tensor = _VocabParallelLosses.apply(logits.float(), targets, group)
    return losses


class _CopyToRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grads[0].contiguous()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def copy_to_ranks(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """`x` itself; its gradients are added up over the ranks, each of which uses a part of the weights."""
    copied: torch.Tensor = _CopyToRanks.apply(x, group)
    return copied
