"""`SwiGLUFunction`, emulated."""

from typing import Any

import torch

from ..contract import everywhere, require


class SwiGLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        everywhere(x)
        require("swiglu.not_empty", x.numel() > 0)
        require("swiglu.rank", x.dim() == 2 and x.shape[-1] % 2 == 0)
        require("swiglu.contiguous", x.is_contiguous())
        ctx.save_for_backward(x)
        gate, up = x.float().chunk(2, -1)
        return (gate * gate.sigmoid() * up).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        gate, up = x.float().chunk(2, -1)
        share, upstream = gate.sigmoid(), grad.float()
        for_gate = upstream * up * (share + gate * share * (1 - share))
        return torch.cat([for_gate, upstream * gate * share], -1).to(x.dtype)
