"""The operations that models are made of. Which implementation each uses is decided when a model is built.

`registry.bind` fills `bound`; until then the implementations `torch` hold. Every op accepts strided inputs of any
floating dtype, keeps statistics in float32 or wider, and is differentiable in its floating inputs.
Legend: `S` positions, `B` rows, `T` tokens of packed documents, `D` width of a head, `H` hidden, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist


class _Bound(dict[str, Callable[..., Any]]):
    """Functions by op; the first one that is called fetches the defaults."""

    def __missing__(self, op: str) -> Callable[..., Any]:
        from loongforge.kernels import registry

        assert self, f"{registry.__name__} installs defaults when it is imported"
        return self[op]


bound = _Bound()
"""What each op calls. Changed by `registry` only."""


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
    """Attention over whole rows: `softmax(scale * query key^T) value` (arXiv 1706.03762).

    Args:
        query: `[S, B, heads, D]`.
        key: `[S', B, kv_heads, D]`; every `heads / kv_heads` query heads share one (arXiv 2305.13245).
        value: `[S', B, kv_heads, D]`.
        causal: Position i sees positions up to i; S and S' are equal then.
        scale: Of the scores.
        mask: bool (True: visible) or added to the scores, broadcastable to `[B, heads, S, S']`; not with `causal`.
        dropout: Probability that a weight is dropped.

    Returns:
        `[S, B, heads, D]`.
    """
    return bound["attention"](query, key, value, causal=causal, scale=scale, mask=mask, dropout=dropout)


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
    """Attention within each of several documents that lie one after another.

    Args:
        query: `[T, heads, D]`.
        key: `[T, kv_heads, D]`.
        value: `[T, kv_heads, D]`.
        cu_seqlens: int32 `[documents + 1]`, from 0 to T: where documents begin and end.
        lengths: The documents' lengths, where the host knows them; None: read from `cu_seqlens`.
        causal: A token sees those of its document up to itself.
        scale: Of the scores.
        dropout: Probability that a weight is dropped.

    Returns:
        `[T, heads, D]`.
    """
    return bound["attention_varlen"](
        query, key, value, cu_seqlens, lengths=lengths, causal=causal, scale=scale, dropout=dropout
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis (arXiv 1910.07467).

    Args:
        x: `[..., H]`.
        weight: `[H]`.
        eps: Added to the mean square.

    Returns:
        `[..., H]`.
    """
    return bound["rms_norm"](x, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last axis (arXiv 1607.06450).

    Args:
        x: `[..., H]`.
        weight: `[H]`.
        bias: `[H]`.
        eps: Added to the variance, which is that of the H numbers (not H - 1).

    Returns:
        `[..., H]`.
    """
    return bound["layer_norm"](x, weight, bias, eps)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (i, i + D/2) of each head by its position's angles (arXiv 2104.09864).

    Angles of 2-D (height and width) or multi-axis positions are the same to it: the caller lays each axis' angles side
    by side in the last axis of `cos` and `sin`.

    Args:
        x: `[S, ..., D]`.
        cos: Cosines, broadcastable to `[S, ..., D/2]`, in the dtype of `x`.
        sin: Sines, likewise.

    Returns:
        `[S, ..., D]`, contiguous.
    """
    return bound["rotary"](x, cos, sin)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` (arXiv 2002.05202).

    Args:
        gate_up: `[..., 2 F]`: gate and up projection side by side.

    Returns:
        `[..., F]`.
    """
    return bound["swiglu"](gate_up)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """`x Phi(x)` with the error function (arXiv 1606.08415); any shape."""
    return bound["gelu"](x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh approximation (arXiv 1606.08415); any shape."""
    return bound["gelu_tanh"](x)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """`x * sigmoid(1.702 x)`, the GELU of the original CLIP; any shape."""
    return bound["quick_gelu"](x)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    vocab_size: int | None = None,
) -> torch.Tensor:
    """Cross-entropy of `hidden weight^T` and `targets`, in nats; the logits `[T, V]` need never exist.

    Args:
        hidden: `[T, H]`, the same on all ranks of the group; T may be 0.
        weight: `[V, H]`; with a group this rank's part `[V / tp, H]`, in the order of the ranks.
        targets: int64 `[T]`, over the whole vocabulary.
        group: Ranks that divide the vocabulary; all call it. None: one rank has all of it.
        vocab_size: Tokens; rows of all ranks' weights beyond are padding and take no part. None: there are none.

    Returns:
        float32 `[T]` (float64 for float64 inputs), the same on every rank. The gradient of `hidden` is summed over the
        group.
    """
    return bound["linear_cross_entropy"](hidden, weight, targets, group, vocab_size=vocab_size)


def moe_permute(
    rows: torch.Tensor, experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copies rows so that those of an expert lie together, in their first order.

    Args:
        rows: `[T, H]`.
        experts: int64 `[T, K]`: the experts that each row goes to.
        num_experts: E.

    Returns:
        `[T K, H]`; int64 `[T K]`: for each copy, its place in the flattened `experts`; int64 `[E]`: copies per expert.
    """
    return bound["moe_permute"](rows, experts, num_experts)


def moe_unpermute(rows: torch.Tensor, order: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Adds up the weighted copies of each row: the way back from `moe_permute`.

    Args:
        rows: `[T K, H]`.
        order: From `moe_permute`.
        weights: `[T, K]` of the router.

    Returns:
        `[T, H]`.
    """
    return bound["moe_unpermute"](rows, order, weights)


def grouped_gemm(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Multiplies each expert's rows with its matrix.

    Args:
        rows: `[N, in]`, expert after expert.
        weights: `[E, in, out]`.
        counts: int64 `[E]`: rows of each expert, which add up to N; some may be 0.

    Returns:
        `[N, out]`.
    """
    return bound["grouped_gemm"](rows, weights, counts)


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
    """One step of AdamW (arXiv 1711.05101) on many tensors, in place.

    Args:
        params: Changed.
        grads: Of each.
        exp_avgs: Running means of the gradients; changed.
        exp_avg_sqs: Running means of their squares; changed.
        step: Number of this step, from 1.
        lr: Learning rate.
        betas: Of the running means.
        eps: Added to the root of the second.
        weight_decay: Strength.
        decoupled: Decay the weights themselves; False: Adam with an L2 term in the gradient (arXiv 1412.6980).
    """
    bound["adamw"](
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        step,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
    )


OPS = (
    "attention",
    "attention_varlen",
    "rms_norm",
    "layer_norm",
    "rotary",
    "swiglu",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "linear_cross_entropy",
    "moe_permute",
    "moe_unpermute",
    "grouped_gemm",
    "adamw",
)
"""Names of all ops."""
