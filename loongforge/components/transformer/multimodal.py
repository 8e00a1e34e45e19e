"""Multi-modal causal attention (DeepSpeed-VisualChat, arXiv 2309.14327): text and images compete separately.

An image token attends to itself alone, so its output is its value. A text token attends to the text up to itself with
one softmax and to the images before it with another, and the two results are added; an empty set adds nothing.
Each softmax is plain attention over the keys of one kind, gathered: no mask of the size of the sequence is made.
(The published code of the paper differs; see docs/generation.md.)
"""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from loongforge.components.transformer.cache import CachedStep
from loongforge.components.transformer.sequence import SequenceView, Span


class Attend(Protocol):
    """Plain attention, `[S, B, heads, head_dim]` each."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        causal: bool = False,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`mask` is bool `[..., S, keys]`."""


def attend(
    plain: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: SequenceView
) -> torch.Tensor:
    """Attention of whole rows.

    Args:
        plain: Attention to all keys that a mask, or causality, allows.
        query: `[S / cp, B, heads, head_dim]`: of the positions that this rank works on.
        key: `[S, B, kv_heads, head_dim]`: of whole rows.
        value: Likewise.
        view: With `is_image`.

    Returns:
        As `query`.
    """
    assert view.is_image is not None
    kinds = view.is_image.cpu().numpy()
    rows = []
    for row, kind in enumerate(kinds):
        part = slice(row, row + 1)
        mine = query[:, part], key[:, part], value[:, part]
        rows.append(_row(plain, *mine, kind, view))
    return torch.cat(rows, 1)


def _row(
    plain: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_image: np.ndarray, view: SequenceView
) -> torch.Tensor:
    """One row; its own values stand for its image tokens."""
    output = _for_heads(value[view.positions], query.shape[2])
    for span in view.spans:
        places = np.arange(span.document, span.end)
        kind = is_image[span.document : span.end]
        text, images = places[~kind], places[kind]
        own = text[np.searchsorted(text, span.start) :]
        if not len(own):
            continue
        chosen = _index(own - span.start + span.first, query)
        asking = query[chosen]
        result = _to_text(plain, asking, key, value, text, own, span)
        result = result + _to_images(plain, asking, key, value, images, own)
        output = output.index_copy(0, chosen, result.to(output.dtype))
    return output


def _to_text(
    plain: Attend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    text: np.ndarray,
    own: np.ndarray,
    span: Span,
) -> torch.Tensor:
    keys = _index(text, key)
    if span.start == span.document:
        return plain(query, key[keys], value[keys], causal=True)
    visible = torch.from_numpy(text <= own[:, None]).to(query.device)
    return plain(query, key[keys], value[keys], mask=visible)


def _to_images(
    plain: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, images: np.ndarray, own: np.ndarray
) -> torch.Tensor:
    """Text between the same two images sees the same ones: one attention without a mask for each such run."""
    seen = np.searchsorted(images, own)
    borders = [0, *(np.flatnonzero(np.diff(seen)) + 1).tolist(), len(own)]
    keys = _index(images, key)
    image_keys, image_values = key[keys], value[keys]
    parts = []
    for start, end in pairwise(borders):
        count = int(seen[start])
        asking = query[start:end]
        none = torch.zeros_like(asking)
        parts.append(plain(asking, image_keys[:count], image_values[:count]) if count else none)
    return torch.cat(parts)


def attend_cached(
    plain: Attend, query: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: CachedStep
) -> torch.Tensor:
    """Attention of new tokens to all that a cache has.

    Args:
        plain: As for `attend`.
        query: `[T, B, heads, head_dim]`.
        value: `[T, B, kv_heads, head_dim]`: of the new tokens.
        keys: `[L, B, kv_heads, head_dim]`.
        values: Likewise.
        step: With `images`.

    Returns:
        As `query`.
    """
    text, images, sees_none, is_image = step.by_kind
    from_images = plain(query, keys, values, mask=images)
    if sees_none is not None:
        from_images = from_images.masked_fill(sees_none, 0.0)
    output = plain(query, keys, values, mask=text) + from_images
    return output if is_image is None else torch.where(is_image, _for_heads(value, query.shape[2]), output)


def _for_heads(value: torch.Tensor, heads: int) -> torch.Tensor:
    """Every query head's value."""
    return value.repeat_interleave(heads // value.shape[2], 2)


def _index(places: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(places).to(like.device)
