"""Implementation `torch` of element-wise ops: hand-written gradients with fewer passes over memory than autograd's.

Each takes and returns contiguous or strided tensors of any floating dtype; statistics are kept in float32. What they
compute is said in `ops`; tests compare values and gradients with `reference` in double precision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from loongforge.kernels import reference
from loongforge.kernels.function import Function


def _run(op: type[Function], plain: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """The op; a compiler gets the plain formula, whose gradient it writes itself and joins with what is around."""
    found: torch.Tensor = plain(*args) if torch.compiler.is_compiling() else op.apply(*args)
    return found


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        width = x.shape[-1]
        stats = x if x.dtype == torch.float64 else x.float()
        scale = torch.linalg.vector_norm(stats, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
        unit = (stats * scale).to(x.dtype)
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        unit, scale, weight = ctx.saved_tensors
        width = unit.shape[-1]
        along = grad * unit
        grad_weight = along.reshape(-1, width).sum(0)
        mean = torch.matmul(along, weight).div_(width).unsqueeze(-1)
        grad_x = (grad * weight).addcmul_(unit, mean, value=-1).mul_(scale)
        return grad_x.to(unit.dtype), grad_weight, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `ops.rms_norm`."""
    if torch.is_grad_enabled() or x.dtype not in (torch.float32, torch.float64):
        return _run(_RMSNorm, reference.rms_norm, x, weight, eps)
    # four calls, since generation pays for calls: weight * x sqrt(width) / sqrt(|x|^2 + width * eps)
    zero, least, root = _norm_constants(x.shape[-1], eps, x.dtype, x.device)
    length = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least)
    return torch.addcdiv(zero, x * weight, length, value=root)


@functools.lru_cache(maxsize=64)
def _norm_constants(
    width: int, eps: float, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """0, the root of `width * eps`, that of `width`."""
    with torch.inference_mode(False):
        least = torch.tensor(math.sqrt(width * eps), dtype=dtype, device=device)
        return torch.zeros_like(least), least, math.sqrt(width)


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        active = F.silu(gate)
        ctx.save_for_backward(gate_up, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        gate_up, active = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        result = torch.empty_like(gate_up)
        for_gate, for_up = result.chunk(2, -1)
        torch.mul(grad, active, out=for_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=for_gate)
        return result


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """See `ops.swiglu`."""
    return _run(_SwiGLU, reference.swiglu, gate_up)


class _QuickGELU(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        scaled = x * 1.702
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(1.702)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, scaled)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """See `ops.quick_gelu`; `x sigmoid(1.702 x)` is `silu(1.702 x) / 1.702`."""
    return _run(_QuickGELU, reference.quick_gelu, x)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, direction: int) -> None:
    first, second = x.chunk(2, -1)
    out_first, out_second = out.chunk(2, -1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=direction)


class _Rotary(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        _rotate(x, cos, sin, out, 1)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        out = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        cos, sin = ctx.saved_tensors
        _rotate(grad, cos, sin, out, -1)
        return out, None, None


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See `ops.rotary`."""
    return _run(_Rotary, reference.rotary, x, cos, sin)
