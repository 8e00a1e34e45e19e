"""Implementation `torch` of what mixtures of experts need."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_ALIGNMENT = 16  # bytes that rows of torch's grouped products begin at a multiple of


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
