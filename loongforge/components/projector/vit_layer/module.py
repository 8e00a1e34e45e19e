"""The ViT-layer projector on megatron-core layers."""

from __future__ import annotations

import torch
from megatron.core.transformer.module import MegatronModule

from loongforge.components.context import BuildContext
from loongforge.components.projector.vit_layer.config import ViTLayerConfig
from loongforge.components.transformer.layers import ACTIVATIONS, LayerNorm, transformer_block, transformer_config
from loongforge.components.transformer.linear import WholeLinear


class ViTLayerProjector(MegatronModule):
    """One pre-norm layer with full attention, then linear and norm."""

    def __init__(self, config: ViTLayerConfig, context: BuildContext, *, input_size: int, output_size: int) -> None:
        sizes = transformer_config(
            context,
            num_layers=1,
            hidden_size=input_size,
            num_attention_heads=config.heads(input_size),
            ffn_hidden_size=config.inner_size(input_size),
            activation_func=ACTIVATIONS[config.activation],
            normalization="LayerNorm",
            layernorm_epsilon=config.layer_norm_eps,
        )
        super().__init__(sizes)
        self.tp_group = context.groups.tp
        self.decoder = transformer_block(sizes, context, causal=False, final_norm=False)
        self.linear = WholeLinear(input_size, output_size, dtype=context.dtype)
        self.norm = LayerNorm(output_size, eps=config.norm_eps, dtype=context.dtype)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`[P, N, input_size]` -> `[P, N, output_size]`."""
        return self.norm(self.linear(self.decoder(features.contiguous(), attention_mask=None)))
