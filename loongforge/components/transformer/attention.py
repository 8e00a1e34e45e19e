"""Self-attention for megatron-core layers: rows or packed documents, rotary positions without copies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    all_gather_last_dim_from_tensor_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention

from loongforge.components.transformer import multimodal
from loongforge.components.transformer.cache import CachedStep
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
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size[0] + 1 if windowed and config.window_size else None
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
            return self._document(query, key, value).flatten(2)
        if view.step is not None and view.continues:
            return self._continue(query, key, value, view.step).flatten(2)
        if self.cp_group.size() > 1:
            key, value = gather_chunks(torch.stack([key, value], 1), self.cp_group).unbind(1)
        if view.step is not None:
            view.step.append(self.layer_number, key, value)
        if view.is_image is not None:
            output = multimodal.attend(self._attend, query, key, value, view)
        elif self.cp_group.size() > 1:
            output = self._from_chunks(query, key, value, view)
        elif view.cu_seqlens is not None:
            output = self._attend_documents(query, key, value, view)
        else:
            output = self._document(query, key, value)
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
        if self.window is not None:
            documents = zip(*(x.split(view.document_lengths) for x in (query, key, value)), strict=True)
            return torch.cat([self._document(*document) for document in documents])
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

    def _document(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attends within one document, or rows that are one each."""
        length, window = len(query), self.window
        if window is None or length <= window:
            return self._attend(query, key, value, causal=self.causal)
        outputs = []  # blocks as long as the window: no mask of the size of the row
        for start in range(0, length, window):
            end, first = min(start + window, length), max(start - window + 1, 0)
            distance = torch.arange(start, end)[:, None] - torch.arange(first, end)
            mask = ((distance >= 0) & (distance < window)).to(query.device)
            outputs.append(self._attend(query[start:end], key[first:end], value[first:end], mask=mask))
        return torch.cat(outputs)

    def _from_chunks(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, view: SequenceView
    ) -> torch.Tensor:
        """Attends from this rank's two chunks, each to the keys (of whole rows) up to its end."""
        size = len(view.positions) // 2
        outputs = []
        for part in (slice(0, size), slice(size, 2 * size)):
            end = int(view.positions[part][-1]) + 1
            first = 0 if self.window is None else max(int(view.positions[part][0]) - self.window + 1, 0)
            mask = view.mask(part, self.window)[:, first:end]
            outputs.append(self._attend(query[part], key[first:end], value[first:end], mask=mask))
        return torch.cat(outputs)

    def _continue(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, step: CachedStep) -> torch.Tensor:
        """Attends from new tokens `[T, B, ...]` to all that the cache has `[L, B, ...]`, theirs included."""
        keys, values = step.append(self.layer_number, key, value)
        if step.has_images:
            return multimodal.attend_cached(self._attend, query, value, keys, values, step)
        return self._attend(query, keys, values, mask=step.mask(self.window))

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

    @cached_property
    def norms_heads(self) -> bool:
        """Whether queries and keys are normalised."""
        return not (isinstance(self.q_layernorm, IdentityOp) and isinstance(self.k_layernorm, IdentityOp))

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: None,
        rotary_pos_emb: torch.Tensor | Sequence[torch.Tensor] | None = None,
        packed_seq_params: SequenceView | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends over the sequence.

        Args:
            hidden_states: `[S, B, H]`; under sequence parallelism this rank's part of S.
            attention_mask: None: the core attention knows its mask.
            rotary_pos_emb: Cosines and sines `[2, S, 1, 1, 1, head_dim / 2]`, or apart; or None.
            packed_seq_params: Positions and documents (the name is megatron-core's); None: whole rows.

        Returns:
            `[S, B, H]` and the bias that is still to be added, if any.
        """
        if hidden_states.shape[0] == 1 and not torch.is_grad_enabled():
            return self._one_token(hidden_states, rotary_pos_emb, packed_seq_params)
        mixed, _ = self.linear_qkv(hidden_states)
        heads = self._split_heads(mixed)
        query, key, value = heads.split([heads.shape[3] - 2, 1, 1], 3)
        query, key = self.q_layernorm(query), self.k_layernorm(key)
        if rotary_pos_emb is not None:
            cos, sin = rotary_pos_emb
            query, key = self._rotate(query, cos, sin), self._rotate(key, cos, sin)
        attended = self.core_attention(query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3), packed_seq_params)
        return self.linear_proj(attended)

    def _one_token(
        self,
        hidden_states: torch.Tensor,
        rotary_pos_emb: torch.Tensor | Sequence[torch.Tensor] | None,
        view: SequenceView | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same for one token of each row without gradients, where calls cost more than sums: in fewer of them."""
        parts = self._modules
        heads = self._split_heads(parts["linear_qkv"].forward(hidden_states)[0])
        queries = heads.shape[3] - 2
        both = heads.narrow(3, 0, queries + 1)
        if self.norms_heads:
            query, key = both.split([queries, 1], 3)
            both = torch.cat([self.q_layernorm(query), self.k_layernorm(key)], 3)
        if rotary_pos_emb is not None:
            both = self._rotate(both, *rotary_pos_emb)
        query, key, value = both.narrow(3, 0, queries), both.select(3, queries), heads.select(3, queries + 1)
        attended = parts["core_attention"].forward(query.flatten(2, 3), key, value, view)
        return parts["linear_proj"].forward(attended)

    def _rotate(self, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        if cos.dtype != heads.dtype:
            cos, sin = cos.to(heads.dtype), sin.to(heads.dtype)
        return ops.rotary(heads, cos, sin)

    def _split_heads(self, mixed: torch.Tensor) -> torch.Tensor:
        """`[S, B, width]` -> `[S, B, groups, heads, head_dim]`: a group's queries, its key, its value."""
        ranks, all_groups = self.tp_group.size(), self.config.num_query_groups
        assert all_groups is not None
        head = self.hidden_size_per_attention_head
        per_group = self.config.num_attention_heads // all_groups
        if ranks <= all_groups:
            return mixed.view(*mixed.shape[:2], all_groups // ranks, per_group + 2, head)
        # several ranks share a key-value head: each takes its part of that head's queries
        group, part = divmod(self.tp_group.rank(), ranks // all_groups)
        everything = all_gather_last_dim_from_tensor_parallel_region(mixed, group=self.tp_group)
        heads = everything.view(*mixed.shape[:2], all_groups, per_group + 2, head)[:, :, group : group + 1]
        queries = heads[..., :-2, :].chunk(ranks // all_groups, 3)[part]
        return torch.cat([queries, heads[..., -2:, :]], 3)
