"""Tiny models of transformers in which every parameter matters: a row for each family.

To add a family: a function that makes its model, and a row in `CASES`. What a row can say besides is in `Case`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from loongforge.data.batch import Batch
from tests.components.hf_models import randomise
from tests.support.tiny import IMAGE_TOKEN

TEXT = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
)
VISION = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=16
)


def _inputs(batch: Batch) -> dict[str, Any]:
    """What transformers' model takes of a batch: fixed-resolution images, rows padded on the right (no mask needed)."""
    images = {"pixel_values": batch.images} if len(batch.images) else {}
    return {"input_ids": batch.tokens, **images}


@dataclass(frozen=True)
class Case:
    """A family under test."""

    make: Callable[[], torch.nn.Module]
    """Its model in transformers, as its constructor leaves it."""
    inputs: Callable[[Batch], dict[str, Any]] = _inputs
    """Keyword arguments of its forward pass."""
    sees_images: bool = False
    layouts: tuple[str, ...] = ()
    """Layouts beside those of all families."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe (`llm.norm_eps`) that are set after `from_hf`, for faults."""

    def model(self, seed: int) -> Any:
        """With random weights, on a CPU in fp32."""
        torch.manual_seed(seed)
        return randomise(self.make(), seed)


def _llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**{**TEXT, "rms_norm_eps": 1e-5, **changes}))


def _llama_3_1() -> Any:
    rope = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    return _llama(rope_parameters={**rope, "original_max_position_embeddings": 32})


def _qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**TEXT))


def _qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**{**TEXT, "head_dim": 24, "tie_word_embeddings": True}))


def _mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**{**TEXT, "sliding_window": 6, "rms_norm_eps": 1e-5}))


def _qwen2_window() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rope = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32)
    window = dict(use_sliding_window=True, sliding_window=5, max_window_layers=1)
    return Qwen2ForCausalLM(Qwen2Config(**TEXT, **window, rope_parameters=rope))


def _qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    experts = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, **experts, head_dim=24, mlp_only_layers=[1]))


def _llava(tower: str, text: Any = None) -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    clip = tower == "clip"
    vision = CLIPVisionConfig(**VISION) if clip else SiglipVisionConfig(**VISION, vision_use_head=False)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text or LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=4,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if clip else "full",
    )
    return LlavaForConditionalGeneration(config)


def _llava_qwen2() -> Any:
    from transformers import Qwen2Config

    return _llava("siglip", Qwen2Config(**TEXT, tie_word_embeddings=True))


QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
QWEN_IDS = dict(image_token_id=IMAGE_TOKEN, video_token_id=127, vision_start_token_id=126, vision_end_token_id=125)


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tower = dict(depth=3, embed_dim=64, num_heads=4, hidden_size=64)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=QWEN_TEXT, vision_config=tower, **QWEN_IDS))


def _qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    windows = dict(window_size=56, fullatt_block_indexes=[1])
    tower = dict(depth=3, hidden_size=64, num_heads=4, intermediate_size=96, out_hidden_size=64, **windows)
    tied = dict(tie_word_embeddings=True)
    config = Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=tower, **QWEN_IDS, **tied)
    return Qwen2_5_VLForConditionalGeneration(config)


PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def _llava_next() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=PINPOINTS,
    )
    return LlavaNextForConditionalGeneration(config)


def _tiled_inputs(batch: Batch) -> dict[str, Any]:
    """Tiles of all images one after another, and images of sizes that have these tiles."""
    from loongforge.components.projector.mlp.llava_next import _EXAMPLES, LlavaNextProjectorConfig
    from tests.support.tiny import tiny_vision

    projector, vision = LlavaNextProjectorConfig(type="llava_next", grid_pinpoints=PINPOINTS), tiny_vision()
    sizes = [(round(width * 32), round(height * 32)) for width, height in _EXAMPLES]
    known = {projector.shape_of(vision.shape, 32, *size): size[::-1] for size in sizes}
    images = {}
    if batch.shapes:
        images = {"pixel_values": batch.images, "image_sizes": torch.tensor([known[s] for s in batch.shapes])}
    return {"input_ids": batch.tokens, **images}


def _any_size_inputs(batch: Batch) -> dict[str, Any]:
    """Patches of all images, their grids, and where their tokens stand."""
    images = {}
    if batch.shapes:
        grids = torch.tensor([shape.grid for shape in batch.shapes])
        kinds = (batch.tokens == IMAGE_TOKEN).int()
        images = {"pixel_values": batch.images, "image_grid_thw": grids, "mm_token_type_ids": kinds}
    mask = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    return {"input_ids": batch.tokens, "attention_mask": mask.long(), **images}


def _internvl(text: Any = None, **tower: Any) -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**{**VISION, "image_size": 64, **tower}),  # 16 patches, 4 tokens
        text_config=text or Qwen2Config(**TEXT),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        tie_word_embeddings=text is None,
    )
    return InternVLForConditionalGeneration(config)


def _internvl_6b() -> Any:
    """The layers of InternViT-6B, an untied output layer."""
    from transformers import Qwen3Config

    return _internvl(Qwen3Config(**TEXT), norm_type="rms_norm", use_qk_norm=True)


CASES: dict[str, Case] = {
    "llama": Case(_llama),
    "llama tied": Case(lambda: _llama(tie_word_embeddings=True)),
    "llama, odd vocabulary": Case(lambda: _llama(vocab_size=131), layouts=("tp4",)),
    "llama 3.1": Case(_llama_3_1, layouts=("pp3",)),
    "qwen2": Case(_qwen2),
    "qwen3": Case(_qwen3, layouts=("tp4",)),
    "mistral": Case(_mistral, layouts=("cp2",)),
    "qwen2 yarn, window in some layers": Case(_qwen2_window, layouts=("cp2",)),
    "qwen3 moe": Case(_qwen3_moe, layouts=("ep2", "tp2 x ep2", "cp2 x ep2", "pp2 x ep2")),
    "llava": Case(lambda: _llava("clip"), sees_images=True),
    "llava siglip qwen2": Case(_llava_qwen2, sees_images=True),
    "internvl": Case(_internvl, sees_images=True),
    "internvl of 6B's kind": Case(_internvl_6b, sees_images=True),
    "llava_next": Case(_llava_next, _tiled_inputs, sees_images=True),
    "qwen2_vl": Case(_qwen2_vl, _any_size_inputs, sees_images=True),
    "qwen2.5_vl": Case(_qwen2_5_vl, _any_size_inputs, sees_images=True),
}
