"""Which stretches of the rotary frequencies there are. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_NEEDED = {
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("original_max_position_embeddings",),
    "linear": (),
}


@dataclass(kw_only=True)
class RopeScalingConfig:
    """Stretch of the rotary frequencies (transformers `modeling_rope_utils`)."""

    rope_type: Literal["llama3", "linear", "yarn"]
    """`llama3`: Llama 3.1 and later; `yarn`: Qwen2.5 and Qwen3 beyond 32768 tokens; `linear`: positions divided (long
    variants of Llama 2)."""
    factor: float
    """How many times longer the context becomes."""
    low_freq_factor: float | None = None
    """llama3: frequencies with fewer turns in the original context are divided."""
    high_freq_factor: float | None = None
    """llama3: frequencies with more turns are kept."""
    original_max_position_embeddings: int | None = None
    """llama3, yarn: tokens of the original context."""
    beta_fast: float = 32.0
    """yarn: frequencies with more turns in the original context are kept."""
    beta_slow: float = 1.0
    """yarn: frequencies with fewer turns are divided."""
    attention_factor: float | None = None
    """yarn: multiplies queries and keys; null: 0.1 ln(factor) + 1."""

    @property
    def scale(self) -> float:
        """Multiplies cosines and sines, and so queries and keys."""
        if self.rope_type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def problems(self) -> list[str]:
        """What is missing."""
        missing = [name for name in _NEEDED[self.rope_type] if getattr(self, name) is None]
        return [f"rope_scaling of rope_type={self.rope_type} needs {', '.join(missing)}"] if missing else []
