"""`RMSNormFunction`, emulated: plain maths behind the contract."""

from typing import Any

import torch

from ..contract import everywhere, require


class RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float, weight: torch.Tensor, one: bool, two: bool) -> torch.Tensor:
        everywhere(x, weight)
        require("rms_norm.contiguous", x.is_contiguous())
        require("rms_norm.dtype", x.dtype == weight.dtype)
        require("rms_norm.weight", weight.dim() == 1 and len(weight) == x.shape[-1])
        require("rms_norm.flags", one is False and two is False)
        stats = x.float()
        scale = (stats.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(stats * scale, scale, weight)
        return (stats * scale * weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        unit, scale, weight = ctx.saved_tensors
        upstream = grad.float()
        for_weight = (upstream * unit).flatten(0, -2).sum(0)
        inner = upstream * weight.float()
        for_x = (inner - unit * (inner * unit).mean(-1, keepdim=True)) * scale
        return for_x.to(grad.dtype), None, for_weight.to(weight.dtype), None, None
