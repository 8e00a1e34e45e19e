"""CLIP- and SigLIP-type vision transformers on megatron-core layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule

from loongforge.components.context import BuildContext
from loongforge.components.transformer.layers import ACTIVATIONS, TorchNorm, transformer_block, transformer_config
from loongforge.components.vision.vit.config import ViTConfig


class PatchEmbedding(torch.nn.Module):
    """Cuts images into patches and maps each to a vector: a convolution whose stride is its width."""

    def __init__(self, config: ViTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        width = 3 * config.patch_size**2
        self.weight = torch.nn.Parameter(torch.empty(config.hidden_size, width, dtype=dtype))
        self.bias: torch.nn.Parameter | None = None
        if not config.has_class_token:
            self.bias = torch.nn.Parameter(torch.empty(config.hidden_size, dtype=dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, 3, H, W]` -> `[N, P, hidden_size]`, patches row by row."""
        num, channels, height, width = images.shape
        p = self.patch_size
        images = images[:, :, : height // p * p, : width // p * p]  # as a convolution does
        patches = images.reshape(num, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(num, -1, channels * p * p), self.weight, self.bias)


class VisionTransformer(MegatronModule):
    """Pixels to features; transformers `CLIPVisionModel` and `SiglipVisionModel` are its references."""

    def __init__(self, config: ViTConfig, context: BuildContext) -> None:
        sizes = transformer_config(
            context,
            num_layers=config.built_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_heads,
            ffn_hidden_size=config.mlp_hidden_size,
            activation_func=ACTIVATIONS[config.activation],
            normalization="LayerNorm",
            layernorm_epsilon=config.norm_eps,
        )
        super().__init__(sizes)
        self.tp_group = context.groups.tp
        self.drop_first = int(config.has_class_token)
        self.patch_embedding = PatchEmbedding(config, context.dtype)
        self.position_embedding = torch.nn.Parameter(
            torch.empty(config.num_positions, config.hidden_size, dtype=context.dtype)
        )
        self.class_token: torch.nn.Parameter | None = None
        self.pre_norm: torch.nn.Module | None = None
        if config.has_class_token:
            self.class_token = torch.nn.Parameter(torch.empty(config.hidden_size, dtype=context.dtype))
            self.pre_norm = TorchNorm(sizes, config.hidden_size, config.norm_eps)
        self.decoder = transformer_block(sizes, context, causal=False, final_norm=config.has_post_norm)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, 3, H, W]` -> features `[P, N, hidden_size]`, without the class token."""
        x = self.patch_embedding(images.to(self.position_embedding.dtype)).transpose(0, 1)  # [P, N, H]
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(1, x.shape[1], -1), x])
        x = x + self.position_embedding[:, None]
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        return self.decoder(x.contiguous(), attention_mask=None)[self.drop_first :]
