"""What came of packing, of a window of samples or of all of them."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Packed:
    """Counts; those of several windows add up."""

    samples: int = 0
    """Packed, each as often as it came."""
    left_out: int = 0
    """Bad or dropped, each as often as it came."""
    images: int = 0
    tokens: int = 0
    rows: int = 0
    shards: int = 0
    size: int = 0
    """Bytes of the shards."""
    compared: int = 0
    """Tokens of the samples that fill whole global batches of the recipe, as far as that is known."""
    padded: int = 0
    """What these take in padded micro-batches, padding included."""

    def __add__(self, other: Packed) -> Packed:
        return Packed(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def fill(self, budget: int) -> float:
        """Part of the rows' room that is used."""
        return self.tokens / (self.rows * budget) if self.rows else 0.0

    @property
    def padding_before(self) -> float | None:
        """Part of all tokens that is padding in padded micro-batches; None: not known."""
        return 1 - self.compared / self.padded if self.padded else None
