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
    "llava": Case(lambda: _llava("clip")),
    "llava siglip qwen2": Case(_llava_qwen2),
}
