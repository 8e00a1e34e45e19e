"""Keys and values of rows that are being continued, so that each token is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch


class KVCache:
    """What one rank keeps of B rows; every pipeline stage has its own layers, every tensor-parallel rank its own heads.

    A step (`CachedStep`) hands in T tokens of each row: layers put their keys and values behind what the rows have, and
    `advance` then says how many of the T are real. What stands behind a row's end is written over by its next tokens.

    Args:
        rows: B.
        capacity: Tokens of the longest row at most; padding of a step may reach over it.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = [0] * rows
        """Tokens that each row has."""
        self.next_positions = [0] * rows
        """Position of each row's next token, for position encodings: the length, or less where the tokens of an image
        share positions."""
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._counted = torch.zeros(0, dtype=torch.int64)
        self._images: torch.Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been kept yet."""
        return not any(self.lengths)

    def layer(self, number: int, like: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values `[at least so many slots, B, kv_heads, head_dim]`, made where missing.

        In memory the slots of a head lie together.

        Args:
            number: Of the layer in the whole model.
            like: A key `[T, B, kv_heads, head_dim]`.
            slots: That have to be there.
        """
        kept = self._layers.get(number)
        if kept is None or kept[0].shape[0] < slots:
            _, rows, heads, width = like.shape
            shape = (rows, heads, max(slots, self.capacity), width)
            keys, values = (like.new_zeros(shape).permute(2, 0, 1, 3) for _ in range(2))
            for old, new in zip(kept or (), (keys, values), strict=False):
                new[: len(old)] = old
            kept = self._layers[number] = (keys, values)
        return kept

    def counted(self, number: int, device: torch.device) -> torch.Tensor:
        """int64 `[number]`: 0, 1, ..."""
        if self._counted.shape[0] != number:
            self._counted = torch.arange(number, device=device)
        return self._counted

    def images(self, like: torch.Tensor, slots: int) -> torch.Tensor:
        """bool `[B, at least so many slots]`: which slots hold image tokens; `like` is bool `[B, T]`."""
        if self._images is None or self._images.shape[1] < slots:
            larger = like.new_zeros(len(like), max(slots, self.capacity))
            if self._images is not None:
                larger[:, : self._images.shape[1]] = self._images
            self._images = larger
        return self._images

    def advance(self, counts: Sequence[int], next_positions: Sequence[int] | None = None) -> None:
        """Ends a step.

        Args:
            counts: Real tokens that each row got.
            next_positions: Position of each row's next token; None: they count on.
        """
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        counted = [position + count for position, count in zip(self.next_positions, counts, strict=True)]
        self.next_positions = counted if next_positions is None else list(next_positions)

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows."""
        self.lengths = [self.lengths[row] for row in rows]
        self.next_positions = [self.next_positions[row] for row in rows]
        for number, kept in self._layers.items():
            chosen = torch.tensor(rows, device=kept[0].device)
            keys, values = (x.permute(1, 2, 0, 3)[chosen].permute(2, 0, 1, 3) for x in kept)
            self._layers[number] = (keys, values)
        if self._images is not None:
            self._images = self._images[torch.tensor(rows, device=self._images.device)]

    def catch_up(self, length: int) -> None:
        """Notes the length of the only row on a rank that has none of its layers."""
        if self._layers:
            assert self.lengths == [length]
        self.lengths = [length]

    def cut(self, length: int) -> None:
        """Forgets what the only row has from a length on, which is behind its last image."""
        assert len(self.lengths) == 1 and length <= self.lengths[0]
        self.next_positions = [length + self.next_positions[0] - self.lengths[0]]
        self.lengths = [length]


class CachedStep:
    """T tokens of each row behind what a cache holds, as one step sees them; L slots are in its reach.

    Args:
        cache: As it is before the step.
        tokens: T.
        device: Of the tokens.
        is_image: bool `[B, T]`; None: attention does not treat images apart.
    """

    def __init__(self, cache: KVCache, tokens: int, device: torch.device, is_image: torch.Tensor | None = None) -> None:
        self.cache, self.tokens, self.device = cache, tokens, device
        self.from_scratch = cache.is_empty
        """The rows begin with this step: attention is that of whole rows."""
        self.reach = max(cache.lengths) + tokens
        """L."""
        self.even = min(cache.lengths) == max(cache.lengths)
        """All rows are as long."""
        self.first_positions = cache.next_positions
        """Position of each row's first new token, for position encodings."""
        self.images = None if is_image is None else self._noted(is_image)
        """bool `[B, L]`: slots that hold image tokens."""
        self._masks: dict[int | None, torch.Tensor] = {}

    def _noted(self, is_image: torch.Tensor) -> torch.Tensor:
        kept = self.cache.images(is_image, self.reach)
        if self.even:
            kept[:, self.reach - self.tokens : self.reach] = is_image
        else:
            kept[self._rows, self.slots] = is_image
        return kept[:, : self.reach]

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts a layer's new keys and values behind each row.

        Args:
            layer: Number of the layer in the whole model.
            key: `[T, B, kv_heads, head_dim]`.
            value: Likewise.

        Returns:
            Keys and values `[L, B, kv_heads, head_dim]`.
        """
        keys, values = self.cache.layer(layer, key, self.reach)
        if self.even:
            keys.narrow(0, self.reach - self.tokens, self.tokens).copy_(key)
            values.narrow(0, self.reach - self.tokens, self.tokens).copy_(value)
        else:
            keys.transpose(0, 1)[self._rows, self.slots] = key.transpose(0, 1)
            values.transpose(0, 1)[self._rows, self.slots] = value.transpose(0, 1)
        return keys.narrow(0, 0, self.reach), values.narrow(0, 0, self.reach)

    @cached_property
    def has_images(self) -> bool:
        """Whether some slot holds an image token that attention treats apart."""
        return self.images is not None and bool(self.images.any())

    @cached_property
    def slots(self) -> torch.Tensor:
        """int64 `[B, T]`: places of the new tokens in their rows."""
        return torch.tensor(self.cache.lengths, device=self.device)[:, None] + self.counted

    @cached_property
    def positions(self) -> torch.Tensor:
        """int64 `[T, B]`: positions of the new tokens, for position encodings."""
        return (torch.tensor(self.first_positions, device=self.device)[:, None] + self.counted).T

    @cached_property
    def counted(self) -> torch.Tensor:
        """int64 `[T]`: 0, 1, ..."""
        return self.cache.counted(self.tokens, self.device)

    @cached_property
    def _rows(self) -> torch.Tensor:
        return torch.arange(len(self.cache.lengths), device=self.device)[:, None]

    def mask(self, window: int | None = None) -> torch.Tensor | None:
        """bool `[B, 1, T, L]`: which slots each new token may attend to; None: all.

        Args:
            window: Number of last tokens, itself included; None: all.
        """
        if self.tokens == 1 and self.even and (window is None or window >= self.reach):
            return None
        if window not in self._masks:
            slots = torch.arange(self.reach, device=self.device)
            own = self.slots[:, None, :, None]
            visible = slots <= own
            self._masks[window] = visible if window is None else visible & (slots > own - window)
        return self._masks[window]

    @cached_property
    def by_kind(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """For attention that treats images apart.

        Returns:
            bool: text and images that each new token sees `[B, 1, T, L]`; whether it sees no image, and whether it is
            one, `[T, B, 1, 1]`, or None where no token does or is.
        """
        assert self.images is not None
        kinds = self.images[:, None, None]
        mask = self.mask()
        text, images = (~kinds, kinds) if mask is None else (mask & ~kinds, mask & kinds)
        own = self.images.gather(1, self.slots) if not self.even else self.images[:, self.reach - self.tokens :]
        return text, images, _by_token(~images.any(-1)[:, 0]), _by_token(own)


def _by_token(flags: torch.Tensor) -> torch.Tensor | None:
    """`[B, T]` -> `[T, B, 1, 1]`; None where all are false: one answer of the device a step, not one a layer."""
    return flags.T[..., None, None] if bool(flags.any()) else None
