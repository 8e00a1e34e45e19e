"""Self-attention for megatron-core layers: torch SDPA, rotary positions without copies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from loongforge.kernels import ops


class TorchAttention(MegatronModule):
    """Core attention through `torch.nn.functional.scaled_dot_product_attention`.

    Causal or full; rows are right-padded, so a causal row's tokens never see its padding and no mask is made.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale or config.kv_channels**-0.5
        self.dropout = config.attention_dropout
        self.causal = attn_mask_type == AttnMaskType.causal

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: `[S, B, heads, head_dim]`.
            key: `[S, B, kv_heads, head_dim]`.
            value: `[S, B, kv_heads, head_dim]`.

        Returns:
            `[S, B, heads * head_dim]`.
        """
        assert attention_mask is None and attention_bias is None and packed_seq_params is None
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [B, heads, S, head_dim]
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.permute(2, 0, 1, 3).flatten(2)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """It has no state."""
        return {}


class TorchSelfAttention(SelfAttention):
    """megatron-core's self-attention with a shorter forward pass: no caches, no masks, rotary halves in place."""

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, attention_mask: None, rotary_pos_emb: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends over the sequence.

        Args:
            hidden_states: `[S, B, H]`; under sequence parallelism this rank's part of S.
            attention_mask: None: the core attention knows its mask.
            rotary_pos_emb: Cosines and sines `[2, S, 1, 1, 1, head_dim / 2]`, or None.

        Returns:
            `[S, B, H]` and the bias that is still to be added, if any.
        """
        mixed, _ = self.linear_qkv(hidden_states)
        groups, head = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        per_group = self.num_attention_heads_per_partition // groups
        heads = mixed.unflatten(-1, (groups, per_group + 2, head))  # [S, B, groups, q.. k v, head]
        query, key, value = heads.split([per_group, 1, 1], 3)
        query, key = self.q_layernorm(query), self.k_layernorm(key)
        if rotary_pos_emb is not None:
            cos, sin = rotary_pos_emb.to(query.dtype).unbind()
            query, key = ops.rotary(query, cos, sin), ops.rotary(key, cos, sin)
        attended = self.core_attention(query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3), None)
        return self.linear_proj(attended)
