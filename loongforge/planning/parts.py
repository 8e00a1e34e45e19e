"""Sums that are kept in parts."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Parts:
    """Numbers of one kind; fields are added by those who inherit."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, item.name) for item in fields(self))
