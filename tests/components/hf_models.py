"""Randomly initialised transformers models in which every parameter matters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from loongforge.config.schema import ModelConfig
from tests.support.tiny import IMAGE_TOKEN, NUM_PATCHES


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Matrices N(0, 1/fan_in), norms around 1, everything else N(0, 0.3): nothing is neutral."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        if param.ndim > 1:
            param.copy_(noise / param[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            param.copy_(1 + 0.2 * noise)
        else:
            param.copy_(0.3 * noise)
    return model.float().eval()


def llava(model: ModelConfig, seed: int = 0) -> LlavaForConditionalGeneration:
    """The transformers model that a config of ours describes."""
    vision: Any = model.vision
    clip = vision.has_class_token
    sizes = dict(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.mlp_hidden_size,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        layer_norm_eps=vision.norm_eps,
    )
    tower = CLIPVisionConfig(projection_dim=8, **sizes) if clip else SiglipVisionConfig(vision_use_head=False, **sizes)
    config = LlavaConfig(
        vision_config=tower,
        text_config=text_config(model),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=vision.feature_layer,
        vision_feature_select_strategy="default" if clip else "full",
        tie_word_embeddings=model.llm.tie_embeddings,
    )
    return randomise(LlavaForConditionalGeneration(config), seed)


def text_config(model: ModelConfig) -> LlamaConfig | Qwen2Config | Qwen3Config:
    """The language model's config in transformers."""
    llm: Any = model.llm
    scaling = vars(llm.rope_scaling) if llm.rope_scaling else {"rope_type": "default"}
    sizes = dict(
        vocab_size=llm.vocab_size,
        hidden_size=llm.hidden_size,
        intermediate_size=llm.mlp_hidden_size,
        num_hidden_layers=llm.num_layers,
        num_attention_heads=llm.num_heads,
        num_key_value_heads=llm.num_kv_heads,
        head_dim=llm.head_size,
        rms_norm_eps=llm.norm_eps,
        max_position_embeddings=llm.max_seq_len,
        tie_word_embeddings=llm.tie_embeddings,
        rope_parameters={"rope_theta": llm.rope_theta, **scaling},
    )
    if llm.qk_norm:
        return Qwen3Config(**sizes)
    return Qwen2Config(**sizes) if llm.qkv_bias else LlamaConfig(**sizes)
