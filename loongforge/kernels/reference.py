"""Implementation `reference` of every op: the plain formula, differentiated by autograd, in the widest useful dtype.

These say what an op means. They are compared with, never tuned. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F

from loongforge.kernels.vocab_parallel import copy_to_ranks, vocab_parallel_losses


def wide(x: torch.Tensor) -> torch.Tensor:
    """float32, or float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool,
    scale: float,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """See `ops.attention`."""
    per_group = query.shape[2] // key.shape[2]
    q, k, v = (wide(x).permute(1, 2, 0, 3) for x in (query, key, value))  # [B, heads, S, D]
    k, v = k.repeat_interleave(per_group, 1), v.repeat_interleave(per_group, 1)
    scores = q @ k.transpose(-1, -2) * scale
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~visible, -math.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(scores.softmax(-1), dropout)
    return (weights @ v).permute(2, 0, 1, 3).to(query.dtype)


def attention_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    lengths: Sequence[int] | None = None,
    causal: bool,
    scale: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """See `ops.attention_varlen`."""
    sizes = cu_seqlens.diff().tolist() if lengths is None else list(lengths)
    documents = zip(*(x[:, None].split(sizes) for x in (query, key, value)), strict=True)
    parts = [attention(*document, causal=causal, scale=scale, dropout=dropout) for document in documents]
    return torch.cat(parts).squeeze(1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `ops.rms_norm`."""
    stats = wide(x)
    unit = stats * torch.rsqrt(stats.square().mean(-1, keepdim=True) + eps)
    return (unit * wide(weight)).to(x.dtype)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """See `ops.layer_norm`."""
    stats = wide(x)
    centred = stats - stats.mean(-1, keepdim=True)
    unit = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (unit * wide(weight) + wide(bias)).to(x.dtype)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See `ops.rotary`."""
    first, second = wide(x).chunk(2, -1)
    cos, sin = wide(cos), wide(sin)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """See `ops.swiglu`."""
    gate, up = wide(gate_up).chunk(2, -1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """See `ops.gelu`."""
    stats = wide(x)
    return (0.5 * stats * (1 + torch.erf(stats / math.sqrt(2)))).to(x.dtype)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """See `ops.gelu_tanh`."""
    stats = wide(x)
    inner = math.sqrt(2 / math.pi) * (stats + 0.044715 * stats**3)
    return (0.5 * stats * (1 + torch.tanh(inner))).to(x.dtype)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """See `ops.quick_gelu`."""
    stats = wide(x)
    return (stats * torch.sigmoid(1.702 * stats)).to(x.dtype)


def real_rows(weight: torch.Tensor, vocab_size: int | None, group: dist.ProcessGroup | None) -> int:
    """How many rows of this rank's part of an output layer belong to tokens; those behind them are padding."""
    if vocab_size is None:
        return len(weight)
    first = 0 if group is None else group.rank() * len(weight)
    return min(max(vocab_size - first, 0), len(weight))


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    vocab_size: int | None = None,
) -> torch.Tensor:
    """See `ops.linear_cross_entropy`. Holds all logits, and their gradient."""
    group = group if group is not None and group.size() > 1 else None
    logits = F.linear(hidden if group is None else copy_to_ranks(hidden, group), weight)
    if (real := real_rows(weight, vocab_size, group)) < len(weight):
        logits = logits.masked_fill(torch.arange(len(weight), device=weight.device) >= real, -torch.inf)
    if group is None:
        return F.cross_entropy(wide(logits), targets, reduction="none")
    return vocab_parallel_losses(logits, targets, group)


def moe_permute(
    rows: torch.Tensor, experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `ops.moe_permute`."""
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    return rows.index_select(0, order // experts.shape[1]), order, torch.bincount(flat, minlength=num_experts)


def moe_unpermute(rows: torch.Tensor, order: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """See `ops.moe_unpermute`."""
    num_rows, per_row = weights.shape
    scaled = wide(rows) * wide(weights).flatten().index_select(0, order)[:, None]
    out = torch.zeros(num_rows, rows.shape[1], dtype=scaled.dtype, device=rows.device)
    return out.index_add(0, order // per_row, scaled).to(rows.dtype)


def grouped_gemm(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """See `ops.grouped_gemm`."""
    parts = rows.split(counts.tolist())
    return torch.cat([part @ weight for part, weight in zip(parts, weights, strict=True)])


@torch.no_grad()
def adamw(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """See `ops.adamw`."""
    beta1, beta2 = betas
    for param, grad, mean, square in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        if decoupled:
            param.mul_(1 - lr * weight_decay)
        else:
            grad = grad + weight_decay * param
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (square / (1 - beta2**step)).sqrt() + eps
        param.sub_(lr / (1 - beta1**step) * mean / root)
