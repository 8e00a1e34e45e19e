"""The vendor's flash_attn, emulated: plain maths behind the contract."""

from typing import Any

import torch
from torch_xmlir.contract import everywhere, require


def _document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> tuple[Any, Any]:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float()) * scale
    if causal:  # aligned to the end of the keys
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - scores.shape[-2])
        scores = scores.masked_fill(~visible, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.float()).to(q.dtype), scores.logsumexp(-1)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    return_attn_probs: bool = False,
    deterministic: bool = False,
) -> Any:
    """Attention within documents; with `return_attn_probs` also the log-sum-exp `[batch, H, longest]`."""
    everywhere(q, k, v)
    require("attention.rank", all(x.dim() == 3 for x in (q, k, v)))
    require("attention.dtype", q.dtype == k.dtype == v.dtype and q.dtype in (torch.bfloat16, torch.float16))
    require("attention.contiguous", all(x.is_contiguous() for x in (q, k, v)))
    for ends, rows in ((cu_seqlens_q, q), (cu_seqlens_k, k)):
        require("attention.cu_seqlens", ends.dtype == torch.int32 and int(ends[-1]) == len(rows))
    require("attention.not_empty", int(cu_seqlens_q[-1]) > 0)
    longest = (int(cu_seqlens_q.diff().max()), int(cu_seqlens_k.diff().max()))
    require("attention.longest", (max_seqlen_q, max_seqlen_k) == longest)
    require("attention.no_dropout", dropout_p == 0)
    scale = softmax_scale or q.shape[-1] ** -0.5
    of_keys = cu_seqlens_k.diff().tolist()
    documents = zip(q.split(cu_seqlens_q.diff().tolist()), k.split(of_keys), v.split(of_keys), strict=True)
    parts = [_document(*document, scale, causal) for document in documents]
    out = torch.cat([part for part, _ in parts])
    if not return_attn_probs:
        return out
    sums = torch.zeros(len(parts), q.shape[1], max_seqlen_q)
    for number, (_, part) in enumerate(parts):
        sums[number, :, : part.shape[-1]] = part
    return out, sums, None
