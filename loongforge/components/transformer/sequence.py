"""Which positions of its rows a rank works on, and where packed documents begin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class SequenceView:
    """A rank's view of the rows of one micro-batch; S is the length of a whole row."""

    positions: torch.Tensor
    """int64 `[S / cp]`, ascending: positions of the row that this rank works on."""
    length: int
    """S."""
    cu_seqlens: torch.Tensor | None = None
    """int32 `[D + 1]`, from 0 to S: where the D documents of a packed row begin and end. None: every row is one
    document."""
    axes: torch.Tensor | None = None
    """int64 `[3, B, S]`: place of every position of the row on three axes, for rotary positions that have them; None:
    the place in its document on all."""

    @cached_property
    def documents(self) -> torch.Tensor | None:
        """int64 `[S]`: document of every position of the row."""
        if self.cu_seqlens is None:
            return None
        sizes = self.cu_seqlens.diff().long()
        return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)

    @cached_property
    def within_document(self) -> torch.Tensor:
        """int64 `[S / cp]`: place of each position in its document, for position encodings."""
        if self.cu_seqlens is None or self.documents is None:
            return self.positions
        return self.positions - self.cu_seqlens.long()[self.documents[self.positions]]

    def mask(self, part: slice, window: int | None = None) -> torch.Tensor:
        """bool `[len(part), S]`: which positions of the row some of this rank's tokens may attend to.

        Args:
            part: Of `positions`.
            window: Latest positions that a token attends to, its own included; None: all.
        """
        queries = self.positions[part, None]
        keys = torch.arange(self.length, device=queries.device)
        visible = keys <= queries
        if window is not None:
            visible &= keys > queries - window
        if self.documents is not None:
            visible &= self.documents[queries] == self.documents
        return visible
