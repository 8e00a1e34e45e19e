"""Rows of one LLM replica that grow token by token, with what is cached of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from loongforge.components.transformer.cache import KVCache
from loongforge.model.execution import Runner
from loongforge.model.positions import grid_positions
from loongforge.parallel.images import Shapes
from loongforge.parallel.routes import ImagePlan


@dataclass
class NewTokens:
    """What `Runner.encode` and `Runner.extend` read of tokens that are put behind rows."""

    tokens: torch.Tensor
    labels: torch.Tensor
    images: torch.Tensor
    lengths: torch.Tensor | None = None
    cu_seqlens: torch.Tensor | None = None
    image_plan: ImagePlan | None = None
    shapes: Shapes | None = None


class Rows:
    """B rows of a replica. Ranks that only encode for it have them as well, without anything cached.

    Args:
        runner: Of the model.
        number: B.
        capacity: Tokens of the longest row at most.
        pad_id: Fills rows that get fewer tokens than others.
    """

    def __init__(self, runner: Runner, number: int, capacity: int, pad_id: int) -> None:
        self.runner, self.pad_id = runner, pad_id
        self.cache = KVCache(number, capacity)
        self._no_images = torch.zeros(0, device=runner.device)

    def batch(self, new: Sequence[Sequence[int]], images: torch.Tensor, shapes: Shapes | None = None) -> NewTokens:
        """New tokens of each row, padded on the right.

        Args:
            new: At least one token for each row.
            images: float32 `[N, 3, H, W]`: those whose tokens are among them; with shapes their rows of pixels.
            shapes: Of these images; None: they are of the encoder's one size.
        """
        multiple = self.runner.extension_multiple(self.cache)
        length = -(-max(map(len, new)) // multiple) * multiple
        tokens = torch.tensor([[*ids, *[self.pad_id] * (length - len(ids))] for ids in new], device=self.runner.device)
        return NewTokens(tokens, tokens, images, shapes=shapes)  # labels are for losses

    def batch_of_one(self, new: torch.Tensor) -> NewTokens:
        """A new token of each row, int64 `[B]`, without images."""
        extra = self.runner.extension_multiple(self.cache) - 1
        tokens = new[:, None] if not extra else F.pad(new[:, None], (0, extra), value=self.pad_id)
        return NewTokens(tokens, tokens, self._no_images)

    @torch.inference_mode()
    def extend(
        self, batch: NewTokens, counts: Sequence[int], image_rows: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Puts tokens behind the rows. Collective over the ranks of the replica.

        Args:
            batch: From `batch`.
            counts: New tokens of each row, padding left out; 0: the row has ended.
            image_rows: From `Runner.encode`.

        Returns:
            Logits `[B, V / tp]` of what follows each row; None except on the last pipeline stage.
        """
        hidden = self.runner.extend(batch, image_rows, self.cache)
        self.cache.advance(counts, self._next_positions(batch, counts))
        if hidden is None:
            return None
        chosen = None
        if hidden.shape[0] > 1:
            last = [max(count - 1, 0) * len(counts) + row for row, count in enumerate(counts)]
            chosen = torch.tensor(last, device=hidden.device)
        logits: torch.Tensor = self.runner.model.llm.logits(hidden, chosen, gathered=True)
        return logits

    def _next_positions(self, batch: NewTokens, counts: Sequence[int]) -> list[int] | None:
        """Behind these tokens of each row, where those of an image share positions; None: they count on."""
        model = self.runner.model
        if not batch.shapes or model.images is None or not getattr(model.llm, "position_axes", False):
            return None
        is_image = F.pad(batch.tokens == model.images.token, (0, 1)).cpu().numpy()  # what follows is text
        found = grid_positions(is_image, batch.shapes)[0]
        return [self.cache.next_positions[row] + int(found[row, count]) for row, count in enumerate(counts)]
