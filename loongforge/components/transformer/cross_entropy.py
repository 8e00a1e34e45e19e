"""Cross-entropy over a vocabulary that is divided over tensor-parallel ranks, from its logits."""

from __future__ import annotations

from loongforge.kernels.vocab_parallel import vocab_parallel_losses

__all__ = ["vocab_parallel_losses"]
