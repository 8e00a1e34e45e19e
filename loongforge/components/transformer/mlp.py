"""Feed-forward layer for megatron-core layers: SwiGLU in one piece."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.mlp import MLP, MLPSubmodules, apply_swiglu_sharded_factory
from megatron.core.transformer.transformer_config import TransformerConfig

from loongforge.components.transformer.linear import ColumnLinear, RowLinear
from loongforge.kernels import ops


class FeedForward(MLP):
    """megatron-core's MLP with a shorter forward pass. Take `FeedForward.over(group)` for a layer spec."""

    group: torch.distributed.ProcessGroup

    @classmethod
    def over(cls, group: torch.distributed.ProcessGroup) -> type[FeedForward]:
        """The class bound to a tensor-parallel group: layers hand one over to megatron-core's own MLP class only."""
        return type(cls.__name__, (cls,), {"group": group})

    is_expert = False
    """Take part in no exchange: what holds the experts sums their outputs and the gradients of their inputs."""

    def __init__(self, config: TransformerConfig) -> None:
        parts = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)
        width = config.ffn_hidden_size
        super().__init__(config, parts, is_expert=self.is_expert, ffn_hidden_size=width, tp_group=self.group)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor | None]:  # type: ignore[override]
        """`[S, B, H]` -> `[S, B, H]`, and the bias that is still to be added, if any."""
        parts = self._modules
        inner, bias = parts["linear_fc1"].forward(hidden_states)
        if bias is not None:
            inner = inner + bias
        inner = ops.swiglu(inner) if self.config.gated_linear_unit else self.config.activation_func(inner)
        return parts["linear_fc2"].forward(inner)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """megatron-core's, with the adapter of gate and up projection divided as these are."""
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        name = f"{prefix}linear_fc1.lora.b"
        if self.config.gated_linear_unit and name in state:
            state[name] = apply_swiglu_sharded_factory(state[name], sharded_offsets)
        return state
