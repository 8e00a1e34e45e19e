"""Layer scale: learned factors on what a sub-layer adds to the residual stream (CaiT, arXiv 2103.17239)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

Added = tuple[torch.Tensor, torch.Tensor | None]


class ScaledAdd(torch.nn.Module):
    """`residual + weight * (x + bias)`, in the place of megatron-core's bias, dropout and sum."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(config.hidden_size, dtype=config.params_dtype))

    def forward(self, training: bool, fused: bool) -> Callable[[Added, torch.Tensor, float], torch.Tensor]:
        """The function that adds (megatron-core asks for it in each forward pass)."""
        return self._add

    def _add(self, added: Added, residual: torch.Tensor, dropout: float) -> torch.Tensor:
        x, bias = added
        return residual + self.weight * (x if bias is None else x + bias)
