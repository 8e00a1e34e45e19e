"""Implementation `torch` of what mixtures of experts need. Rows are taken, never added into places that several of them
share, so that the sums have the same order every time on every device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from loongforge.kernels.function import Function

_ALIGNMENT = 16  # bytes that rows of torch's grouped products begin at a multiple of


def moe_permute(
    rows: torch.Tensor, experts: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `ops.moe_permute`."""
    flat = experts.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    return _Copies.apply(rows, order, experts.shape[1]), order, counts


def moe_unpermute(rows: torch.Tensor, order: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """See `ops.moe_unpermute`."""
    num_rows, per_row = weights.shape
    apart = _Reordered.apply(rows, order).view(num_rows, per_row, rows.shape[1])
    return (apart * weights[..., None]).sum(1)


def _inverse(order: torch.Tensor) -> torch.Tensor:
    """Where each place has gone."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


class _Copies(Function):
    """`[T, H]` -> `[T K, H]`: copies of rows in an order; their gradients come back together."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, per_row: int) -> torch.Tensor:
        ctx.save_for_backward(order)
        ctx.per_row = per_row
        return rows.index_select(0, order // per_row)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (order,) = ctx.saved_tensors
        together = grad.index_select(0, _inverse(order))
        return together.view(len(order) // ctx.per_row, ctx.per_row, grad.shape[1]).sum(1), None, None


class _Reordered(Function):
    """`[N, H]` -> `[N, H]`: rows back at the places of which an order has taken them."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, _inverse(order))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad.index_select(0, ctx.saved_tensors[0]), None


def grouped_gemm(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """See `ops.grouped_gemm`: one call, without asking the device how many rows an expert has."""
    return F.grouped_mm(rows, weights, offs=counts.cumsum(0).to(torch.int32))


def grouped_gemm_missing() -> str | None:
    """Why torch has no grouped product here, or None."""
    return None if hasattr(F, "grouped_mm") else "this torch has no torch.nn.functional.grouped_mm"


def grouped_gemm_refuses(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> str | None:
    """Why it does not take these, or None."""
    if rows.dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {rows.dtype}"
    if not len(rows):
        return "no rows"
    widths = (rows.shape[1], weights.shape[2])
    if any(width * rows.element_size() % _ALIGNMENT for width in widths):
        return f"rows of {widths[0]} and {widths[1]} numbers are not multiples of {_ALIGNMENT} bytes"
    return None if rows.is_contiguous() and weights.is_contiguous() else "not contiguous"
