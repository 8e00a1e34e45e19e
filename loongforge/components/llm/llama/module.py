"""Llama-type decoders on megatron-core layers."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import ModelType
from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint

from loongforge.components.context import BuildContext
from loongforge.components.llm.llama import rope
from loongforge.components.llm.llama.config import LlamaConfig
from loongforge.components.llm.llama.qwen3_moe import Qwen3MoeConfig
from loongforge.components.llm.stages import stage_sizes
from loongforge.components.sharding import pad_to
from loongforge.components.transformer.attention import gather_chunks
from loongforge.components.transformer.cross_entropy import vocab_parallel_losses
from loongforge.components.transformer.experts import ExpertFeedForward, ExpertSizes
from loongforge.components.transformer.layers import ACTIVATIONS, transformer_block, transformer_config
from loongforge.components.transformer.linear import ColumnLinear
from loongforge.components.transformer.mlp import FeedForward
from loongforge.components.transformer.routing import Routing
from loongforge.components.transformer.sequence import SequenceView
from loongforge.kernels import ops


def _window_sizes(config: LlamaConfig) -> dict[str, Any]:
    """In megatron-core's words: positions before a token's own, and which layers have the window."""
    if config.sliding_window is None:
        return {}
    chosen = [int(window is not None) for window in config.windows]
    return {"window_size": (config.sliding_window - 1, 0), "window_attn_skip_freq": chosen}


def _uneven_stages(num_layers: int, pp: int) -> dict[str, int]:
    if num_layers % pp == 0:
        return {}
    first, *_, last = stage_sizes(num_layers, pp)
    return {"num_layers_in_first_pipeline_stage": first, "num_layers_in_last_pipeline_stage": last}


def _feed_forward(config: LlamaConfig, context: BuildContext, routing: Routing | None, layer: int) -> type:
    """The class of a layer's feed-forward part."""
    if routing is None or not isinstance(config, Qwen3MoeConfig) or not config.has_experts(layer):
        return FeedForward.over(context.groups.tp)
    sizes = ExpertSizes(
        config.num_experts, config.experts_per_token, config.expert_hidden_size, config.norm_expert_weights
    )
    return ExpertFeedForward.over(context.groups, sizes, routing, layer)


def _mixed_layers(config: LlamaConfig) -> dict[str, bool]:
    """Checkpoints stack layers of one kind into one tensor; layers of two kinds are kept apart."""
    if not isinstance(config, Qwen3MoeConfig):
        return {}
    kinds = {config.has_experts(layer) for layer in range(config.num_layers)}
    return {"hetereogenous_dist_checkpoint": len(kinds) > 1}


class LlamaModel(LanguageModule):
    """Embedding, decoder and output layer of this rank's pipeline stage; transformers `LlamaForCausalLM` and kin."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, config: LlamaConfig, context: BuildContext) -> None:
        sizes = transformer_config(
            context,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_heads,
            num_query_groups=config.num_kv_heads,
            kv_channels=config.head_size,
            ffn_hidden_size=config.mlp_hidden_size,
            activation_func=ACTIVATIONS["silu"],
            gated_linear_unit=True,
            add_bias_linear=False,
            add_qkv_bias=config.qkv_bias,
            qk_layernorm=config.qk_norm,
            normalization="RMSNorm",
            layernorm_epsilon=config.norm_eps,
            **_window_sizes(config),
            **_uneven_stages(config.num_layers, context.pp),
            **_mixed_layers(config),
        )
        super().__init__(sizes, context.groups)
        self.vocab_size = config.vocab_size
        padded = -(-config.vocab_size // context.tp) * context.tp
        self.separates_images = config.attention == "mmca"
        self.pre_process, self.post_process = context.first_stage, context.last_stage
        self.share_embeddings_and_output_weights = config.tie_embeddings
        self.register_buffer("rope_frequencies", rope.inverse_frequencies(config), persistent=False)
        self.register_buffer("rope_axes", rope.frequency_axes(config), persistent=False)
        self.rope_scale = config.rope_scaling.scale if config.rope_scaling else 1.0
        self.nearby_angles = rope.NearbyAngles()
        if self.pre_process:
            self.embedding = LanguageModelEmbedding(
                sizes,
                padded,
                config.max_seq_len,
                position_embedding_type="none",
                scatter_to_sequence_parallel=True,
                tp_group=context.groups.tp,
            )
        self.cp_group = context.groups.cp
        self.routing = Routing(config.routers) if config.routers is not None else None
        feed_forward = functools.partial(_feed_forward, config, context, self.routing)
        self.decoder = transformer_block(sizes, context, causal=True, qk_norm=config.qk_norm, feed_forward=feed_forward)
        if self.post_process:
            self.output_layer = self._output_layer(config, context, padded)
        self.setup_embeddings_and_output_layer()
        if padded > config.vocab_size:
            self._note_padding()

    def _note_padding(self) -> None:
        """Tensor-parallel ranks hold rows of the same number, the last ones of no token."""
        if self.pre_process:
            pad_to(self.embedding.word_embeddings.weight, self.vocab_size)
        if self.post_process and self.output_layer.weight is not None:
            pad_to(self.output_layer.weight, self.vocab_size)

    def _output_layer(self, config: LlamaConfig, context: BuildContext, rows: int) -> ColumnLinear:
        """It sees the chosen positions of all ranks, so it neither gathers nor scatters the sequence itself."""
        layer = ColumnLinear(
            config.hidden_size,
            rows,
            config=self.config,
            init_method=torch.nn.init.zeros_,
            bias=False,
            skip_weight_param_allocation=self.pre_process and config.tie_embeddings,
            tp_group=context.groups.tp,
        )
        layer.sequence_parallel, layer.allreduce_dgrad = False, context.tp > 1
        return layer

    def tie_embeddings_and_output_weights_state_dict(
        self,
        sharded_state_dict: dict[str, Any],
        output_layer_weight_key: str,
        first_stage_word_emb_key: str,
        metadata: dict[str, Any],
    ) -> None:
        """The last stage's copy of a tied embedding is saved as the first stage's (megatron-core asks its globals)."""
        if self.post_process and not self.pre_process:
            group = metadata["dp_cp_group"]
            sharded_state_dict[output_layer_weight_key] = make_tp_sharded_tensor_for_checkpoint(
                self.shared_embedding_or_output_weight(),
                first_stage_word_emb_key,
                replica_id=(1, 0, group.rank()),
                allow_shape_mismatch=True,
                tp_group=self.tp_group,
                dp_cp_group=group,
            )

    @property
    def position_axes(self) -> bool:
        """Whether positions in an image have three axes."""
        return self.rope_axes is not None

    def set_input_tensor(self, input_tensor: torch.Tensor) -> None:
        """Takes the previous stage's output (called by megatron-core's schedules)."""
        self.decoder.set_input_tensor(input_tensor)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids `[B, S]` -> embeddings `[S, B, H]`; under sequence parallelism this rank's part of S.

        First stage only.
        """
        if torch.is_grad_enabled() or self.tp_group.size() > 1:
            return self.embedding(input_ids=tokens, position_ids=None)
        return F.embedding(tokens.t(), self.embedding.word_embeddings.weight)

    def forward(self, embeddings: torch.Tensor | None, view: SequenceView) -> torch.Tensor:
        """Runs this stage's layers.

        Args:
            embeddings: From `embed` on the first stage, None on others (they take the schedule's input tensor).
            view: Positions and documents of the rows.

        Returns:
            Hidden states `[S, B, H]` of this rank's positions; under sequence parallelism its part of them.
        """
        # without gradients past what megatron-core asks about CUDA graphs in every call
        decoder = self.decoder if torch.is_grad_enabled() else self.decoder.forward
        return decoder(embeddings, attention_mask=None, rotary_pos_emb=self._rotary(view), packed_seq_params=view)

    def _rotary(self, view: SequenceView) -> torch.Tensor:
        """Cosines and sines of this rank's positions."""
        if self.position_axes and view.axes is not None:
            axes = view.axes[..., view.positions]
            return rope.cos_sin_of_axes(self.rope_frequencies, axes, self.rope_axes) * self.rope_scale
        if view.step is not None and view.continues:
            return self.nearby_angles.at(view.step, self.rope_frequencies, self.rope_scale)
        return rope.cos_sin(self.rope_frequencies, view.within_document) * self.rope_scale

    def whole(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of all positions of the rows `[S, B, H]`, the same on every rank of the last stage."""
        hidden = self.whole_continued(hidden)
        return gather_chunks(hidden, self.cp_group) if self.cp_group.size() > 1 else hidden

    def whole_continued(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same where every context-parallel rank works on all positions: rows that are continued from a cache."""
        return self._gather_parts(hidden)

    def _gather_parts(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.config.sequence_parallel:
            return hidden
        return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False, group=self.tp_group)

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor | None, *, gathered: bool = False) -> torch.Tensor:
        """Logits of chosen positions. Last stage only.

        Args:
            hidden: From `forward`, or from `whole`.
            rows: int64 `[T]`, indices into the flattened `[S * B]` positions; None: all.
            gathered: `hidden` is from `whole`.

        Returns:
            `[T, vocabulary / tp]`: this rank's part of the vocabulary; minus infinity where the last rank's part is
            padding.
        """
        hidden = hidden if gathered else self._gather_parts(hidden)
        chosen = hidden.flatten(0, 1)
        if rows is not None:
            chosen = chosen.index_select(0, rows)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        logits = self.output_layer(chosen.unsqueeze(1), weight=weight)[0].squeeze(1)
        width = logits.shape[-1]
        real = self.vocab_size - self.tp_group.rank() * width
        if real >= width:
            return logits
        return logits.masked_fill(torch.arange(width, device=logits.device) >= real, -torch.inf)

    def losses(self, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of chosen positions in nats; their logits need never exist. Last stage only.

        Args:
            hidden: From `forward`.
            rows: int64 `[T]`, indices into the flattened `[S * B]` positions.
            targets: int64 `[T]`.

        Returns:
            float32 `[T]`.
        """
        chosen = self._gather_parts(hidden).flatten(0, 1).index_select(0, rows)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return ops.linear_cross_entropy(chosen, weight, targets, self.tp_group, vocab_size=self.vocab_size)

    def token_losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each position in nats.

        Args:
            logits: `[T, vocabulary / tp]`.
            targets: int64 `[T]`.

        Returns:
            float32 `[T]`.
        """
        if self.tp_group.size() == 1:
            return F.cross_entropy(logits.float(), targets, reduction="none")
        return vocab_parallel_losses(logits, targets, self.tp_group)

    @torch.no_grad()
    def best_tokens(self, logits: torch.Tensor) -> torch.Tensor:
        """The most likely token of each position, the same on every tensor-parallel rank.

        Args:
            logits: `[T, vocabulary / tp]`.

        Returns:
            int64 `[T]`.
        """
        if self.tp_group.size() == 1:
            return logits.argmax(-1)
        value, index = logits.float().max(-1)
        first = self.tp_group.rank() * logits.shape[-1]
        mine = torch.stack([value, (index + first).float()])  # exact below 2^24
        everyone = [torch.empty_like(mine) for _ in range(self.tp_group.size())]
        torch.distributed.all_gather(everyone, mine, group=self.tp_group)
        values, indices = torch.stack(everyone).unbind(1)  # [tp, T]
        return indices.gather(0, values.argmax(0, keepdim=True)).squeeze(0).long()
