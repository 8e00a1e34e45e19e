"""What a rank of a trial brings back. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Outcome:
    """What a rank found."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Joint gradient norms."""
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    """Full gradients of the first step, of the parameters that this rank holds a shard of."""
    parameters: dict[str, np.ndarray] = field(default_factory=dict)
    """Full parameters after the last step."""
    moved: list[str] = field(default_factory=list)
    """Frozen parameters that this rank does not hold as they were."""
    differing: list[str] = field(default_factory=list)
    """Parameters of which two ranks held different bits after some step, where they should hold the same."""
