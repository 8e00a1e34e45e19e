"""Kernels for NVIDIA GPUs, from packages that may be installed. Their calls follow the packages' documentation.

None has been run by this project yet: `loongforge backends verify --backend cuda` compares each with its reference.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from loongforge_backends.common import fused_adamw
from loongforge_backends.cuda import torch_kernels

from loongforge.kernels.impl import Impl

_HALF = (torch.bfloat16, torch.float16)
_LARGE_PIECE = 2**26  # logits held at once by linear + cross-entropy: 256 MiB, for products that fill the device


def _lacks(package: str, submodule: str = "") -> Callable[[], str | None]:
    def missing() -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
        if submodule and importlib.util.find_spec(f"{package}.{submodule}") is None:
            return f"this {package} has no {package}.{submodule}"
        return None

    return missing


def _half_only(
    query: torch.Tensor, *_: Any, mask: torch.Tensor | None = None, dropout: float = 0.0, **__: Any
) -> str | None:
    if query.dtype not in _HALF:
        return f"dtype {query.dtype}"
    if mask is not None:
        return "a mask"
    if query.shape[-1] > 256 or query.shape[-1] % 8:
        return f"head width {query.shape[-1]}"
    return None


def _te_refuses(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> str | None:
    if len(query) != len(key):
        return "keys of another length"
    return _half_without_dropout(query, key, *args, **kwargs)


def _half_without_dropout(query: torch.Tensor, *args: Any, dropout: float = 0.0, **kwargs: Any) -> str | None:
    return _half_only(query, *args, **kwargs) or ("dropout" if dropout else None)


def _flash_dense() -> Callable[..., torch.Tensor]:
    from flash_attn import flash_attn_func

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
        q, k, v = (x.transpose(0, 1) for x in (query, key, value))  # [B, S, heads, D]
        return flash_attn_func(q, k, v, dropout_p=dropout, softmax_scale=scale, causal=causal).transpose(0, 1)

    return attention


def _flash_varlen() -> Callable[..., torch.Tensor]:
    from flash_attn import flash_attn_varlen_func

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
        most, ends = torch_kernels.longest(cu_seqlens, lengths), cu_seqlens.to(torch.int32)
        options = dict(dropout_p=dropout, softmax_scale=scale, causal=causal)
        return flash_attn_varlen_func(query, key, value, ends, ends, most, most, **options)

    return attention_varlen


@functools.lru_cache(maxsize=32)
def _te_module(
    layout: str, mask: str, heads: int, kv_heads: int, width: int, scale: float
) -> Callable[..., torch.Tensor]:
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(
        heads,
        width,
        num_gqa_groups=kv_heads,
        attention_dropout=0.0,
        qkv_format=layout,
        attn_mask_type=mask,
        softmax_scale=scale,
    )


def _te_dense() -> Callable[..., torch.Tensor]:
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
        sizes = (query.shape[2], key.shape[2], query.shape[3])
        module = _te_module("sbhd", "causal" if causal else "no_mask", *sizes, scale)
        return module(*(x.contiguous() for x in (query, key, value))).view_as(query)

    return attention


def _te_varlen() -> Callable[..., torch.Tensor]:
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
        most, ends = torch_kernels.longest(cu_seqlens, lengths), cu_seqlens.to(torch.int32)
        sizes = (query.shape[1], key.shape[1], query.shape[2])
        module = _te_module("thd", "padding_causal" if causal else "padding", *sizes, scale)
        packed = dict(cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=most, max_seqlen_kv=most)
        return module(*(x.contiguous() for x in (query, key, value)), **packed).view_as(query)

    return attention_varlen


def _liger_rms_norm() -> Callable[..., torch.Tensor]:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return LigerRMSNormFunction.apply(x.contiguous(), weight, eps, 0.0, "llama", False)  # not in place

    return rms_norm


def _liger_swiglu() -> Callable[..., torch.Tensor]:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = (part.contiguous() for part in gate_up.chunk(2, -1))
        return LigerSiLUMulFunction.apply(gate, up)

    return swiglu


def _large_pieces() -> Callable[..., torch.Tensor]:
    from loongforge.kernels.linear_cross_entropy import linear_cross_entropy

    return functools.partial(linear_cross_entropy, piece=_LARGE_PIECE)


def _empty(x: torch.Tensor, *_: Any) -> str | None:
    return None if x.numel() else "no numbers"


def kernels() -> list[Impl]:
    """Ranked: the special package before torch's own, both before the generic ones."""
    flash, flash_source = _lacks("flash_attn"), "flash-attn's README: flash_attn_func, flash_attn_varlen_func"
    liger, liger_source = _lacks("liger_kernel"), "liger-kernel's ops/{rms_norm,swiglu}.py"
    return [
        Impl(
            op="attention",
            name="flash_attn",
            load=_flash_dense,
            priority=30,
            source=flash_source,
            missing=flash,
            refuses=_half_only,
        ),
        Impl(
            op="attention_varlen",
            name="flash_attn",
            load=_flash_varlen,
            priority=40,
            source=flash_source,
            missing=flash,
            refuses=_half_only,
        ),
        Impl(
            op="attention_varlen",
            name="torch_varlen",
            load=torch_kernels.varlen,
            priority=30,
            source="torch.nn.attention.varlen.varlen_attn",
            missing=_lacks("torch.nn.attention", "varlen"),
            refuses=_half_without_dropout,
        ),
        Impl(
            op="attention_varlen",
            name="te",
            load=_te_varlen,
            priority=20,
            source="Transformer Engine's DotProductAttention, qkv_format=thd",
            missing=_lacks("transformer_engine"),
            refuses=_half_without_dropout,
        ),
        Impl(
            op="attention",
            name="te",
            load=_te_dense,
            priority=5,  # below SDPA: where no packing asks for it, only by name
            source="Transformer Engine's DotProductAttention, qkv_format=sbhd",
            missing=_lacks("transformer_engine"),
            refuses=_te_refuses,
        ),
        Impl(
            op="rms_norm",
            name="liger",
            load=_liger_rms_norm,
            priority=20,
            source=liger_source,
            missing=liger,
            refuses=_empty,
        ),
        Impl(
            op="rms_norm",
            name="torch_fused",
            load=torch_kernels.rms_norm,
            priority=15,
            source="torch.nn.functional.rms_norm (pytorch pull request 153666)",
            missing=torch_kernels.rms_norm_missing,
            refuses=torch_kernels.rms_norm_refuses,
        ),
        Impl(
            op="swiglu",
            name="liger",
            load=_liger_swiglu,
            priority=20,
            source=liger_source,
            missing=liger,
            refuses=_empty,
        ),
        Impl(
            op="linear_cross_entropy",
            name="large_pieces",
            load=_large_pieces,
            priority=20,
            source="loongforge.kernels.linear_cross_entropy",
        ),
        fused_adamw(),
    ]
