"""Implementation `torch` of attention: `torch.nn.functional.scaled_dot_product_attention`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


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
    """See `ops.attention`."""
    query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [B, heads, S, D]
    shared = query.shape[1] != key.shape[1]
    one = shared and query.shape[2] == 1 and (mask is None or mask.dim() < 3 or mask.shape[-3] == 1)
    if one:  # heads that share keys are like queries that share them: nothing is repeated
        query = query.flatten(1, 2).unflatten(1, (key.shape[1], -1))
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=shared and not one,
    )
    if one:
        output = output.flatten(1, 2).unsqueeze(2)
    return output.permute(2, 0, 1, 3)


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
    """See `ops.attention_varlen`: documents one by one."""
    sizes = cu_seqlens.diff().tolist() if lengths is None else list(lengths)
    documents = zip(*(x[:, None].split(sizes) for x in (query, key, value)), strict=True)
    parts = [attention(*document, causal=causal, scale=scale, dropout=dropout) for document in documents]
    return torch.cat(parts).squeeze(1)
