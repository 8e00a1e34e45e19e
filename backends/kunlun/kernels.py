"""Adapters to the vendor's fused training kernels: each guarantees the contract of docs/kunlun.md before it calls.

Written to public call sites (sources in brackets, keys in docs/kunlun.md); none has run on a card in this project.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch

from loongforge.kernels.impl import Impl

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_HALF = (torch.bfloat16, torch.float16)


def _lacks(module: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        return None if found is not None else f"{module} is not installed"

    return missing


def _plain(*tensors: torch.Tensor) -> str | None:
    """What no fused kernel takes."""
    for x in tensors:
        if x.dtype not in _FLOATS:
            return f"dtype {x.dtype}"
        if hasattr(x, "to_local"):
            return "a DTensor"
        if not x.numel():
            return "no numbers"
    return None


def rms_norm_refuses(x: torch.Tensor, weight: torch.Tensor, eps: float) -> str | None:
    """[CF, W06]"""
    return _plain(x, weight) or ("dtypes of x and weight differ" if x.dtype != weight.dtype else None)


def rms_norm() -> Callable[..., torch.Tensor]:
    """`RMSNormFunction` [CF, W06]."""
    from torch_xmlir.nn.rms_norm import RMSNormFunction

    def call(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return RMSNormFunction.apply(x.contiguous(), eps, weight.contiguous(), False, False)

    return call


def rotary_refuses(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> str | None:
    """[CF, W06]: one angle per row of the first axis and pair."""
    expected = (len(x), *([1] * (x.dim() - 2)), x.shape[-1] // 2)
    if tuple(cos.shape) != expected or tuple(sin.shape) != expected:
        return "angles that differ between rows or heads"
    return _plain(x) or ("angles of another dtype" if cos.dtype != x.dtype else None)


def rotary() -> Callable[..., torch.Tensor]:
    """`FusedRoPEFunc` in its THD form, half rotation [CF, W06]."""
    from torch_xmlir.nn.rope import FusedRoPEFunc

    def call(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        length, width = len(x), x.shape[-1]
        angles = [torch.cat([part, part], -1).reshape(length, 1, 1, width).contiguous() for part in (cos, sin)]
        ends = torch.tensor([0, length], dtype=torch.int64, device=x.device)
        rows = x.reshape(length, -1, width).contiguous()
        turned, _ = FusedRoPEFunc.apply(rows, None, None, *angles, ends, "THD", False)
        return turned.view(x.shape)

    return call


def swiglu_refuses(gate_up: torch.Tensor) -> str | None:
    """[P, M, W06]"""
    return _plain(gate_up)


def swiglu() -> Callable[..., torch.Tensor]:
    """`SwiGLUFunction`: silu on the first half [P, M, W06]."""
    from torch_xmlir.nn.swiglu import SwiGLUFunction

    def call(gate_up: torch.Tensor) -> torch.Tensor:
        width = gate_up.shape[-1]
        rows = gate_up.reshape(-1, width).contiguous()
        return SwiGLUFunction.apply(rows).view(*gate_up.shape[:-1], width // 2)

    return call


def _attention_refuses(query: torch.Tensor, key: torch.Tensor, dropout: float) -> str | None:
    if query.dtype not in _HALF:
        return f"dtype {query.dtype}"
    if dropout:
        return "dropout"
    if query.shape[-1] > 256 or query.shape[-1] % 8:
        return f"head width {query.shape[-1]}"
    return _plain(query, key)


def varlen_refuses(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, dropout: float = 0.0, **__: Any
) -> str | None:
    """[CF, W06, L]"""
    return _attention_refuses(query, key, dropout)


def varlen() -> Callable[..., torch.Tensor]:
    """The vendor's `flash_attn_varlen_func` [CF, W06, L]."""
    from flash_attn import flash_attn_varlen_func

    def call(
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
        ends = cu_seqlens.to(torch.int32)
        most = max(lengths if lengths is not None else ends.diff().tolist())
        q, k, v = (x.contiguous() for x in (query, key, value))
        return flash_attn_varlen_func(
            q, k, v, ends, ends, most, most, softmax_scale=scale, causal=causal, return_attn_probs=False
        )

    return call


def dense_refuses(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> str | None:
    """[CF]"""
    if mask is not None:
        return "a mask"
    return "keys of another length" if len(query) != len(key) else _attention_refuses(query, key, dropout)


def dense() -> Callable[..., torch.Tensor]:
    """Whole rows as documents: the vision tower takes the same way, never SDPA [TW, CF]."""
    packed = varlen()

    def call(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        causal: bool,
        scale: float,
        mask: torch.Tensor | None = None,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        length, rows = query.shape[:2]
        ends = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=query.device)
        q, k, v = (x.transpose(0, 1).flatten(0, 1) for x in (query, key, value))
        out = packed(q, k, v, ends, lengths=[length] * rows, causal=causal, scale=scale)
        return out.unflatten(0, (rows, length)).transpose(0, 1)

    return call


def _vendor(op: str, load: Callable[..., Any], refuses: Callable[..., str | None], module: str, source: str) -> Impl:
    return Impl(
        op=op,
        name="xmlir" if module.startswith("torch_xmlir") else "flash_attn",
        load=load,
        priority=30,
        source=f"{source} (docs/kunlun.md)",
        missing=_lacks(module),
        refuses=refuses,
    )


def kernels() -> list[Impl]:
    """Those with public call sites in training, forward and backward."""
    return [
        _vendor("rms_norm", rms_norm, rms_norm_refuses, "torch_xmlir.nn.rms_norm", "CF, W06"),
        _vendor("rotary", rotary, rotary_refuses, "torch_xmlir.nn.rope", "CF, W06"),
        _vendor("swiglu", swiglu, swiglu_refuses, "torch_xmlir.nn.swiglu", "P, M, W06"),
        _vendor("attention_varlen", varlen, varlen_refuses, "flash_attn", "CF, W06, L"),
        _vendor("attention", dense, dense_refuses, "flash_attn", "CF, W06"),
    ]
