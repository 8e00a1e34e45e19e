"""Qwen2, Qwen3 and Mistral: the decoder of Llama with other settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loongforge.components.llm.llama.config import LlamaConfig


@dataclass(kw_only=True)
class Qwen2Config(LlamaConfig):
    """Biases on q, k and v (transformers `Qwen2ForCausalLM`; Qwen2 and Qwen2.5)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen2",)

    rope_theta: float = 1000000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    qkv_bias: bool = True
    """Biases on q, k and v."""


@dataclass(kw_only=True)
class Qwen3Config(LlamaConfig):
    """Norms on q and k, heads of a width of their own (transformers `Qwen3ForCausalLM`)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen3",)

    head_dim: int | None = 128
    """Width of a head; null: hidden_size / num_heads."""
    rope_theta: float = 1000000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Epsilon of every RMSNorm."""
    qk_norm: bool = True
    """RMSNorm on each head's q and k."""


@dataclass(kw_only=True)
class MistralConfig(LlamaConfig):
    """A sliding window in all layers, or in none (transformers `MistralForCausalLM`)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("mistral",)
