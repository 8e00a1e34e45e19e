"""What a process of a stage is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from loongforge.kernels.backend import Backend


@dataclass(frozen=True)
class Context:
    """Of one process."""

    backend: Backend
    device: torch.device
    folder: Path
    """Shared by all stages."""
    rank: int
    world_size: int
    fault: str
    """Planted, to see that it is found; empty: none."""

    def planted(self, fault: str) -> bool:
        """Whether this fault is to be made."""
        return self.fault == fault
