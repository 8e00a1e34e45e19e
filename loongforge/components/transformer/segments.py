"""Full attention inside segments of a sequence: the frames of images that differ in size, or windows of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loongforge.components.transformer.attention import TorchAttention, TorchSelfAttention


@dataclass(frozen=True)
class Segments:
    """Where a sequence `[S, 1, H]` is cut; lengths add up to S."""

    whole: list[int]
    """Lengths of the segments that a layer without windows attends in."""
    windows: list[int]
    """Of those of a layer with windows."""


class SegmentAttention(TorchAttention):
    """Attends within each segment; segments of one length are taken together."""

    windowed = False
    """Whether the layer has windows; set by the encoder that knows its layers."""

    def forward(  # type: ignore[override]
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: Segments
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: `[S, 1, heads, head_dim]`, as keys and values.
            key: Likewise.
            value: Likewise.
            view: Where the sequence is cut.

        Returns:
            `[S, 1, heads * head_dim]`.
        """
        lengths = view.windows if self.windowed else view.whole
        kinds = sorted(set(lengths))
        if len(kinds) == 1:
            return self._together(query, key, value, kinds[0]).flatten(1)[:, None]
        rows = torch.arange(len(query), device=query.device).split(lengths)
        chosen = [torch.cat([part for part in rows if len(part) == kind]) for kind in kinds]
        found = [self._together(query[i], key[i], value[i], kind) for i, kind in zip(chosen, kinds, strict=True)]
        back = torch.cat(chosen).argsort()
        return torch.cat(found)[back].flatten(1)[:, None]

    def _together(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int) -> torch.Tensor:
        """`[n * length, 1, heads, head_dim]` -> `[n * length, heads, head_dim]`."""
        cut = (x.squeeze(1).unflatten(0, (-1, length)).transpose(0, 1) for x in (query, key, value))
        return self._attend(*cut).transpose(0, 1).flatten(0, 1)


class Float32RotaryAttention(TorchSelfAttention):
    """Turns heads in float32, whatever the type of the layer."""

    def _rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return super()._rotate(heads.float(), cos, sin).to(heads.dtype)
