"""Vision encoders of Qwen2-VL and Qwen2.5-VL on megatron-core layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule

from loongforge.components.context import BuildContext
from loongforge.components.transformer.layers import ACTIVATIONS, transformer_block, transformer_config
from loongforge.components.transformer.segments import Float32RotaryAttention, SegmentAttention, Segments
from loongforge.components.vision.qwen_vl.config import QwenViTConfig
from loongforge.components.vision.qwen_vl.grids import grids
from loongforge.parallel.images import Shapes

_THETA = 10000.0


class QwenVisionTransformer(MegatronModule):
    """Patches to features; transformers' `Qwen2VisionTransformerPretrainedModel` and the one of Qwen2.5-VL."""

    any_size = True

    def __init__(self, config: QwenViTConfig, context: BuildContext) -> None:
        sizes = transformer_config(
            context,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_heads,
            ffn_hidden_size=config.mlp_hidden_size,
            activation_func=ACTIVATIONS["silu" if config.gated else "quick_gelu"],
            gated_linear_unit=config.gated,
            normalization=config.normalization,
            layernorm_epsilon=1e-6,
        )
        super().__init__(sizes)
        self.tp_group = context.groups.tp
        self.merge, self.window = config.merge_size, config.window_tokens
        shape = (config.hidden_size, config.pixel_row[0])
        self.patch_embedding = torch.nn.Parameter(torch.empty(shape, dtype=context.dtype))
        quarter = config.hidden_size // config.num_heads // 4
        frequencies = _THETA ** -(torch.arange(quarter, dtype=torch.float) / quarter)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.decoder = transformer_block(
            *(sizes, context),
            causal=False,
            final_norm=False,
            attention_type=Float32RotaryAttention,
            core_type=SegmentAttention,
        )
        for layer in self.decoder.layers:
            layer.self_attention.core_attention.windowed = config.is_windowed(layer.layer_number - 1)

    def forward(self, patches: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        """Encodes images.

        Args:
            patches: `[S, 3 * temporal_patch_size * patch_size^2]`, as `AnySizeImageProcessor` orders them.
            shapes: Of the images; `grid` counts patches.

        Returns:
            `[S, hidden_size]`, image by image, frame by frame and row by row.
        """
        found = grids(shapes, self.merge, self.window)
        order, places, rows = (torch.from_numpy(x).to(patches.device) for x in (found.order, found.places, found.rows))
        x = F.linear(patches.to(self.patch_embedding.dtype)[order], self.patch_embedding)
        angles = (places.float()[..., None] * self.frequencies).transpose(0, 1).flatten(1)  # [S, head_dim / 2]
        rotary = torch.stack([angles.cos(), angles.sin()])[:, :, None, None, None]
        cut = Segments(found.frames, found.windows)
        x = self.decoder(x[:, None], attention_mask=None, rotary_pos_emb=rotary, packed_seq_params=cut)
        return x[:, 0][rows]
