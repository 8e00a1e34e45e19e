"""`FusedRoPEFunc` in its THD form, emulated."""

from typing import Any

import torch

from ..contract import everywhere, require


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos.squeeze(1) + torch.cat([-second, first], -1) * sin.squeeze(1)


class FusedRoPEFunc(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Any, k: Any, v: Any, cos: Any, sin: Any, cu_seqlens: Any, layout: str, interleaved: bool
    ) -> tuple[torch.Tensor, None]:
        everywhere(q, cos, sin)
        require("rope.one_tensor", k is None and v is None)
        require("rope.layout", layout == "THD" and interleaved is False)
        require("rope.rank", q.dim() == 3 and q.shape[-1] % 2 == 0)
        require("rope.contiguous", q.is_contiguous())
        shape = (q.shape[0], 1, 1, q.shape[2])
        require("rope.angles", tuple(cos.shape) == shape and tuple(sin.shape) == shape)
        require("rope.angles_dtype", cos.dtype == sin.dtype == q.dtype)
        require("rope.cu_seqlens", cu_seqlens.dtype == torch.int64)
        ctx.save_for_backward(cos, sin)
        return _turn(q, cos, sin), None

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None, None, None, None, None, None
