"""RMSNorm over all heads of a query or key together, which tensor-parallel ranks divide (InternViT-6B)."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region, reduce_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

EPS = 1e-6  # in transformers, whatever the other norms have


class WidthNorm(torch.nn.Module):
    """RMSNorm whose mean runs over the heads of all ranks. Take `WidthNorm.over(group)` for a layer spec."""

    group: torch.distributed.ProcessGroup

    @classmethod
    def over(cls, group: torch.distributed.ProcessGroup) -> type[WidthNorm]:
        """The class bound to a tensor-parallel group."""
        return type(cls.__name__, (cls,), {"group": group})

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.weight = torch.nn.Parameter(torch.empty(self.width // self.group.size(), dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises `[S, B, groups, heads, head_dim]`, this rank's heads."""
        heads = x.shape[2:]
        x = x.flatten(2)
        squares = x.float().pow(2).sum(-1, keepdim=True)
        if self.group.size() > 1:  # every rank's output depends on the sum, so its gradient is summed as well
            squares = reduce_from_tensor_model_parallel_region(squares, group=self.group)
            squares = copy_to_tensor_model_parallel_region(squares, group=self.group)
        normalised = (x.float() * torch.rsqrt(squares / self.width + EPS)).to(x.dtype)
        return (self.weight * normalised).unflatten(2, heads)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The weight is divided along its only axis."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )
