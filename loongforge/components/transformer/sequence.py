"""Which positions of its rows a rank works on, where packed documents begin, and what came before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from loongforge.components.transformer.cache import CachedStep


@dataclass
class Span:
    """Positions `start` to `end` (exclusive) of a row, in the document that begins at `document`."""

    first: int
    """Place of `start` among the positions that the rank works on."""
    start: int
    end: int
    document: int


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
    is_image: torch.Tensor | None = None
    """bool `[B, S]`: positions of the rows that hold image tokens, for attention that treats them apart; None: there
    are none, or it does not."""
    lengths: torch.Tensor | None = None
    """int64 `[B]`: real tokens of each row, the others are padding behind them; None: all are real."""
    step: CachedStep | None = None
    """What the rows had before, where they are being continued; None: they begin here, and nothing is kept of them."""

    @property
    def continues(self) -> bool:
        """Whether the rows go on behind what a cache holds. All context-parallel ranks then work on all positions."""
        return self.step is not None and not self.step.from_scratch

    @cached_property
    def real(self) -> torch.Tensor | None:
        """bool `[S / cp * B]`: which of this rank's tokens are no padding, position by position; None: all."""
        if self.lengths is None:
            return None
        return (self.positions[:, None] < self.lengths.to(self.positions.device)).flatten()

    @cached_property
    def document_lengths(self) -> list[int] | None:
        """Lengths of the documents, on the host; asked of the device once for all layers."""
        return None if self.cu_seqlens is None else self.cu_seqlens.diff().tolist()

    @cached_property
    def documents(self) -> torch.Tensor | None:
        """int64 `[S]`: document of every position of the row."""
        if self.cu_seqlens is None:
            return None
        sizes = self.cu_seqlens.diff().long()
        return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)

    @cached_property
    def within_document(self) -> torch.Tensor:
        """int64 `[S / cp]`: place of each position in its document, for position encodings; `[S, B]` where the rows are
        continued, since they differ in length."""
        if self.step is not None and self.continues:
            return self.step.positions
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

    @cached_property
    def spans(self) -> list[Span]:
        """This rank's positions as runs of neighbours that lie in one document each."""
        ends = [self.length] if self.cu_seqlens is None else self.cu_seqlens[1:].tolist()
        positions = self.positions.tolist()
        found: list[Span] = []
        document = 0
        for number, position in enumerate(positions):
            if number == 0 or position != positions[number - 1] + 1 or position == ends[document]:
                while position >= ends[document]:
                    document += 1
                begin = ends[document - 1] if document else 0
                found.append(Span(number, position, position, begin))
            found[-1].end = position + 1
        return found
