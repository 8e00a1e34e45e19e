"""Small language models of transformers, one for each family and setting that we cover."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

from tests.components.hf_models import randomise
from tests.support.tiny import VOCAB

SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32)
MOE = dict(
    num_experts=8,
    num_experts_per_tok=3,
    moe_intermediate_size=24,
    head_dim=24,
    norm_topk_prob=True,
    num_key_value_heads=4,
)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("llama", dict(num_key_value_heads=4)),
    "llama 3.1": ("llama", dict(rope_parameters=LLAMA3)),
    "llama 3.2, tied": ("llama", dict(rope_parameters=LLAMA3, tie_word_embeddings=True, head_dim=24)),
    "llama, positions divided": ("llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=3.0))),
    "qwen2": ("qwen2", {}),
    "qwen2.5 long": ("qwen2", dict(rope_parameters=YARN, tie_word_embeddings=True)),
    "qwen2, a window in some layers": (
        "qwen2",
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=2),
    ),
    "qwen3": ("qwen3", dict(head_dim=24)),
    "qwen3, own pattern of windows, tied": (
        "qwen3",
        dict(
            head_dim=16,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        ),
    ),
    "mistral v0.1": ("mistral", dict(sliding_window=6)),
    "mistral v0.3": ("mistral", dict(sliding_window=None, head_dim=24)),
    "qwen3 moe": ("qwen3_moe", MOE),
    "qwen3 moe, some layers dense, weights as they are": (
        "qwen3_moe",
        {**MOE, "mlp_only_layers": [2], "decoder_sparse_step": 2, "norm_topk_prob": False},
    ),
    "qwen3 moe, window": (
        "qwen3_moe",
        {**MOE, "mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 7, "tie_word_embeddings": True},
    ),
}


def hf_config(name: str, **changes: Any) -> PretrainedConfig:
    """The config of a family's small model."""
    kind, options = FAMILIES[name]
    return CONFIG_MAPPING[kind](**{**SIZES, **options, **changes})


def hf_model(name: str, seed: int = 0, **changes: Any) -> Any:
    """A family's small model, in which every parameter matters."""
    config = hf_config(name, **changes)
    return randomise(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), seed)


def on_disk(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a model in memory as its checkpoint has them: experts one by one."""
    found = {}
    for name, tensor in tensors.items():
        layer, stacked, kind = name.partition(".experts.")
        if not stacked:
            found[name] = tensor
            continue
        for number, expert in enumerate(tensor):
            parts = zip(("gate_proj", "up_proj"), expert.chunk(2), strict=True) if kind == "gate_up_proj" else []
            for part, values in parts or [("down_proj", expert)]:
                found[f"{layer}.experts.{number}.{part}.weight"] = values
    return found
