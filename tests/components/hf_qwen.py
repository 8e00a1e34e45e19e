"""Randomly initialised Qwen2-VL and Qwen2.5-VL of transformers in which every parameter matters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from loongforge.config.schema import ModelConfig
from tests.components.hf_models import randomise
from tests.support.tiny import IMAGE_TOKEN


def qwen_vl(model: ModelConfig, seed: int = 0) -> torch.nn.Module:
    """The transformers model that a config of ours describes."""
    vision: Any = model.vision
    llm: Any = model.llm
    shared = dict(
        depth=vision.num_layers,
        num_heads=vision.num_heads,
        patch_size=vision.patch_size,
        spatial_merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
    )
    text = dict(
        vocab_size=llm.vocab_size,
        hidden_size=llm.hidden_size,
        intermediate_size=llm.mlp_hidden_size,
        num_hidden_layers=llm.num_layers,
        num_attention_heads=llm.num_heads,
        num_key_value_heads=llm.num_kv_heads,
        rms_norm_eps=llm.norm_eps,
        max_position_embeddings=llm.max_seq_len,
        rope_parameters={"rope_type": "default", "rope_theta": llm.rope_theta, "mrope_section": llm.mrope_section},
    )
    ids = dict(image_token_id=IMAGE_TOKEN, video_token_id=2, vision_start_token_id=0, vision_end_token_id=1)
    ids["tie_word_embeddings"] = llm.tie_embeddings
    if not vision.gated:
        tower = dict(embed_dim=vision.hidden_size, hidden_size=llm.hidden_size, mlp_ratio=4, **shared)
        config = Qwen2VLConfig(text_config=text, vision_config=tower, **ids)
        return randomise(Qwen2VLForConditionalGeneration(config), seed)
    tower = dict(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.mlp_hidden_size,
        out_hidden_size=llm.hidden_size,
        window_size=vision.window_size,
        fullatt_block_indexes=vision.full_attention_layers,
        tokens_per_second=vision.tokens_per_second,
        **shared,
    )
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, **ids)
    return randomise(Qwen2_5_VLForConditionalGeneration(config), seed)
