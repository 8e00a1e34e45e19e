"""Kernels of torch for NVIDIA GPUs that the generic implementations do not use. None has been run here yet."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F


def varlen() -> Callable[..., torch.Tensor]:
    """`torch.nn.attention.varlen.varlen_attn`, whose arguments differ between torch 2.10, 2.11 and later ones."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters

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
        options: dict[str, Any] = {"window_size": (-1, 0) if causal else (-1, -1)}
        if "window_size" not in known:
            options = {"is_causal": causal}
        if "scale" in known:
            options["scale"] = scale
        else:  # the kernel's own is 1 / sqrt(width)
            query = query * (scale * query.shape[-1] ** 0.5)
        shared = query.shape[1] // key.shape[1]
        if "enable_gqa" in known:
            options["enable_gqa"] = shared > 1
        elif shared > 1:
            key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
        most, ends = longest(cu_seqlens, lengths), cu_seqlens.to(torch.int32)
        return varlen_attn(query, key, value, ends, ends, most, most, **options)  # type: ignore[return-value]

    return attention_varlen


def longest(cu_seqlens: torch.Tensor, lengths: Sequence[int] | None) -> int:
    """Tokens of the longest document."""
    return max(lengths if lengths is not None else cu_seqlens.diff().tolist(), default=0)


def rms_norm_missing() -> str | None:
    """torch 2.8 has the formula alone."""
    return None if hasattr(torch.ops.aten, "_fused_rms_norm") else f"torch {torch.__version__} has no fused one"


def rms_norm_refuses(x: torch.Tensor, weight: torch.Tensor, eps: float) -> str | None:
    """What torch computes by the formula."""
    return "dtypes of x and weight differ" if x.dtype != weight.dtype else None


def rms_norm() -> Callable[..., torch.Tensor]:
    """`torch.nn.functional.rms_norm`: one kernel forward, two backward."""

    def call(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    return call
