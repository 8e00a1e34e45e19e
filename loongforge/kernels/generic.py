"""Implementations that every backend has: the plain formulas, and torch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from loongforge.kernels import attention, fused, moe, reference
from loongforge.kernels.impl import Impl
from loongforge.kernels.linear_cross_entropy import linear_cross_entropy
from loongforge.kernels.ops import OPS

_TORCH = "torch's documentation; gradients tested against reference in float64"


def _layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _foreach_adamw() -> Callable[..., None]:
    from loongforge.kernels import adam  # it is an optimizer as well, over the ops themselves

    return adam.foreach


def _torch(op: str, function: Callable[..., Any], **more: Any) -> Impl:
    return Impl(op=op, name="torch", load=lambda: function, priority=10, source=_TORCH, **more)


def generic() -> list[Impl]:
    """`reference` and `torch` of every op; where `torch` is missing, reference is what torch has to offer."""
    plain = [
        Impl(
            op=op,
            name="reference",
            load=partial(getattr, reference, op),
            priority=0,
            source="loongforge.kernels.reference",
            evidence="reference",
        )
        for op in OPS
    ]
    return [
        *plain,
        _torch("attention", attention.attention),
        _torch("attention_varlen", attention.attention_varlen),
        _torch("rms_norm", fused.rms_norm),
        _torch("layer_norm", _layer_norm),
        _torch("rotary", fused.rotary),
        _torch("swiglu", fused.swiglu),
        _torch("gelu", F.gelu),
        _torch("gelu_tanh", partial(F.gelu, approximate="tanh")),
        _torch("quick_gelu", fused.quick_gelu),
        _torch("linear_cross_entropy", linear_cross_entropy),
        _torch("moe_permute", moe.moe_permute),
        _torch("moe_unpermute", moe.moe_unpermute),
        _torch(
            "grouped_gemm",
            moe.grouped_gemm,
            missing=moe.grouped_gemm_missing,
            refuses=moe.grouped_gemm_refuses,
        ),
        Impl(op="adamw", name="torch", load=_foreach_adamw, priority=10, source=_TORCH),
    ]
