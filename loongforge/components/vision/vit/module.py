"""Vision transformers on a fixed patch grid, on megatron-core layers."""

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
        if config.has_patch_bias:
            self.bias = torch.nn.Parameter(torch.empty(config.hidden_size, dtype=dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, 3, H, W]` -> `[N, P, hidden_size]`, patches row by row."""
        num, channels, height, width = images.shape
        p = self.patch_size
        images = images[:, :, : height // p * p, : width // p * p]  # as a convolution does
        patches = images.reshape(num, channels, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(num, -1, channels * p * p), self.weight, self.bias)


class VisionTransformer(MegatronModule):
    """Pixels to features.

    References in transformers: `CLIPVisionModel`, `SiglipVisionModel`, `InternVLVisionModel`, `Dinov2Model`,
    `Dinov2WithRegistersModel`.
    """

    def __init__(self, config: ViTConfig, context: BuildContext) -> None:
        kind = config.layer_kind
        sizes = transformer_config(
            context,
            num_layers=config.built_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_heads,
            ffn_hidden_size=config.mlp_hidden_size,
            activation_func=ACTIVATIONS["silu" if kind.gated else config.activation],
            gated_linear_unit=kind.gated,
            normalization=kind.normalization,
            layernorm_epsilon=config.norm_eps,
        )
        super().__init__(sizes)
        self.tp_group = context.groups.tp
        width, dtype = config.hidden_size, context.dtype
        self.drop_first = int(config.has_class_token) + config.num_registers
        self.patch_embedding = PatchEmbedding(config, dtype)
        self.position_embedding = torch.nn.Parameter(torch.empty(config.num_positions, width, dtype=dtype))
        self.class_token = _vectors(*config.class_token_shape, dtype=dtype) if config.has_class_token else None
        self.registers = _vectors(config.num_registers, width, dtype=dtype) if config.num_registers else None
        self.pre_norm = TorchNorm(sizes, width, config.norm_eps) if config.has_pre_norm else None
        self.decoder = transformer_block(
            sizes,
            context,
            causal=False,
            qkv_bias=kind.qkv_bias,
            qk_norm="width" if kind.qk_norm else False,
            layer_scale=kind.layer_scale,
            final_norm=config.has_post_norm,
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[N, 3, H, W]` -> features `[P, N, hidden_size]`, of the patches alone."""
        x = self.patch_embedding(images.to(self.position_embedding.dtype)).transpose(0, 1)  # [P, N, H]
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(1, x.shape[1], -1), x])
        x = x + self.position_embedding[:, None]
        if self.registers is not None:
            x = torch.cat([x[:1], self.registers[:, None].expand(-1, x.shape[1], -1), x[1:]])
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        return self.decoder(x.contiguous(), attention_mask=None)[self.drop_first :]


def _vectors(*shape: int, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape, dtype=dtype))
