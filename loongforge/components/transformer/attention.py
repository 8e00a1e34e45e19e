"""Self-attention for megatron-core layers: rows or packed documents, rotary positions without copies."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from loongforge.components.transformer import multimodal
from loongforge.components.transformer.sequence import SequenceView
from loongforge.kernels import ops


class TorchAttention(MegatronModule):
    """Core attention through the ops `attention` and `attention_varlen`.

    Causal or full; rows are right-padded, so a causal row's tokens never see its padding and no mask is made. Documents
    of a packed row are attended to one by one. Under context parallelism every rank gathers all keys and values (as
    Llama 3 was trained, arXiv 2407.21783 section 3.3.2) and attends from its own positions. Where rows are being
    continued, keys and values are kept in the view's cache.
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
        assert pg_collection is not None
        self.cp_group = pg_collection.cp
        self.scale = softmax_scale or config.kv_channels**-0.5
        self.dropout = config.attention_dropout
        self.causal = attn_mask_type == AttnMaskType.causal
        self.layer_number = layer_number

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: SequenceView | None
    ) -> torch.Tensor:
        """Attends.

        Args:
            query: `[S, B, heads, head_dim]`; under context parallelism, as keys and values, this rank's positions.
            key: `[S, B, kv_heads, head_dim]`.
            value: `[S, B, kv_heads, head_dim]`.
            view: Positions and documents; None: whole rows of one document.

        Returns:
            `[S, B, heads * head_dim]`.
        """
        if view is None:
            return self._attend(query, key, value, causal=self.causal).flatten(2)
        if self.cp_group.size() > 1 and not view.continues:
            key, value = gather_chunks(torch.stack([key, value], 1), self.cp_group).unbind(1)
        kept = view.step.append(self.layer_number, key, value) if view.step is not None else None
        if kept is not None and view.continues:
            output = self._continue(query, key, value, *kept, view)
        elif view.is_image is not None:
            output = multimodal.attend(self._attend, query, key, value, view)
        elif self.cp_group.size() > 1:
            output = self._from_chunks(query, key, value, view)
        elif view.cu_seqlens is not None:
            output = self._attend_documents(query, key, value, view)
        else:
            output = self._attend(query, key, value, causal=self.causal)
        return output.flatten(2)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        causal: bool = False,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        return ops.attention(query, key, value, causal=causal, scale=self.scale, mask=mask, dropout=dropout)

    def _attend_documents(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: SequenceView
    ) -> torch.Tensor:
        """The documents of a packed row (B is 1), each to itself."""
        assert view.cu_seqlens is not None
        output = ops.attention_varlen(
            query.squeeze(1),
            key.squeeze(1),
            value.squeeze(1),
            view.cu_seqlens,
            lengths=view.document_lengths,
            causal=self.causal,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
        )
        return output[:, None]

    def _from_chunks(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: SequenceView
    ) -> torch.Tensor:
        """Attends from this rank's two chunks, each to the keys (of whole rows) up to its end."""
        size = len(view.positions) // 2
        outputs = []
        for part in (slice(0, size), slice(size, 2 * size)):
            end = int(view.positions[part][-1]) + 1
            outputs.append(self._attend(query[part], key[:end], value[:end], mask=view.mask(part)[:, :end]))
        return torch.cat(outputs)

    def _continue(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        view: SequenceView,
    ) -> torch.Tensor:
        """Attends from new tokens `[T, B, ...]` to all that the cache has `[L, B, ...]`."""
        assert view.step is not None
        if view.step.has_images:
            return multimodal.attend_cached(self._attend, query, value, keys, values, view.step)
        return self._attend(query, keys, values, mask=view.step.mask())

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """It has no state."""
        return {}


def gather_chunks(local: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """Whole rows `[S, ...]` from the context-parallel ranks' positions `[S / cp, ...]`, in the order of positions.

    The backward pass adds up the ranks' gradients and gives each rank those of its positions.
    """
    gathered = gather_from_sequence_parallel_region(local, tensor_parallel_output_grad=True, group=group)
    ranks = group.size()
    chunks = gathered.chunk(2 * ranks)  # rank i's are chunk i and chunk 2 * ranks - 1 - i of the row
    return torch.cat(chunks[0::2] + chunks[1::2][::-1])


class TorchSelfAttention(SelfAttention):
    """megatron-core's self-attention with a shorter forward pass: no caches, no masks, rotary halves in place."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: None,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: SequenceView | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends over the sequence.

        Args:
            hidden_states: `[S, B, H]`; under sequence parallelism this rank's part of S.
            attention_mask: None: the core attention knows its mask.
            rotary_pos_emb: Cosines and sines `[2, S, 1, 1, 1, head_dim / 2]`, or None.
            packed_seq_params: Positions and documents (the name is megatron-core's); None: whole rows.

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
        attended = self.core_attention(query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3), packed_seq_params)
        return self.linear_proj(attended)
