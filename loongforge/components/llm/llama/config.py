"""Llama-type decoders: Llama 2/3, Qwen2 (biases on q, k, v), Qwen3 (norms on q and k)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loongforge.components.llm.base import LLMConfig, ParameterSize

if TYPE_CHECKING:
    import torch

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class RopeScalingConfig:
    """Stretch of the rotary frequencies as in Llama 3.1 (transformers `_compute_llama3_parameters`)."""

    rope_type: Literal["llama3"]
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(kw_only=True)
class LlamaConfig(LLMConfig):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU (transformers `LlamaForCausalLM` and kin)."""

    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads, each shared by `num_heads / num_kv_heads` query heads."""
    mlp_hidden_size: int
    """Inner width of the feed-forward layers."""
    hf_model_types: ClassVar[tuple[str, ...]] = ("llama", "qwen2", "qwen3")
    hf_free: ClassVar[frozenset[str]] = frozenset({"max_seq_len", "vocab_size"})

    head_dim: int | None = None
    """Width of a head; null: hidden_size / num_heads."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScalingConfig | None = None
    """Stretch for long contexts; null: none."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    tie_embeddings: bool = False
    """The output layer is the token embedding."""
    qkv_bias: bool = False
    """Biases on q, k and v (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm on each head's q and k (Qwen3)."""

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_heads

    def problems(self, tp: int, pp: int) -> list[str]:
        """Sizes that do not fit one another or the layout."""
        found = []
        if self.head_dim is None and self.hidden_size % self.num_heads:
            found.append(f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}")
        if self.head_size % 2:
            found.append(f"head_dim={self.head_size} is odd; rotary positions need an even one")
        if self.num_heads % self.num_kv_heads:
            found.append(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        for name in ("num_heads", "num_kv_heads", "mlp_hidden_size", "vocab_size"):
            if getattr(self, name) % tp:
                found.append(f"{name}={getattr(self, name)} cannot be divided over parallel.tp={tp}")
        if self.num_layers % pp:
            found.append(f"num_layers={self.num_layers} cannot be divided over parallel.pp={pp}")
        return found

    def small_copy(self, *, num_layers: int, divisor: int) -> LlamaConfig:
        """The same kind of decoder with heads of width 8."""
        heads = divisor * min(4, self.num_heads // self.num_kv_heads)
        return replace(
            self,
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=divisor,
            head_dim=8 if self.head_dim else None,
            hidden_size=8 * heads,
            mlp_hidden_size=16 * heads,
            vocab_size=64 * divisor,
            max_seq_len=256,
            init_std=0.08,
            init_from=None,
        )

    def num_params(self) -> int:
        """Parameters of the whole model."""
        query, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        layer = self.hidden_size * (query + 2 * kv) + query * self.hidden_size
        layer += 3 * self.hidden_size * self.mlp_hidden_size + 2 * self.hidden_size
        layer += (query + 2 * kv) if self.qkv_bias else 0
        layer += 2 * self.head_size if self.qk_norm else 0
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size

    def params_on(self, tp: int, pp: int, stage: int) -> int:
        """Parameters that a rank of a pipeline stage holds; norms are whole on every rank."""
        query, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        divided = self.hidden_size * (2 * query + 2 * kv) + 3 * self.hidden_size * self.mlp_hidden_size
        divided += (query + 2 * kv) if self.qkv_bias else 0
        whole = 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)
        found = self.num_layers // pp * (divided // tp + whole)
        embedding = self.vocab_size // tp * self.hidden_size
        first, last = stage == 0, stage == pp - 1
        found += embedding if first else 0
        found += self.hidden_size + (0 if first and self.tie_embeddings else embedding) if last else 0
        return found

    def parameter_sizes(self) -> dict[str, ParameterSize]:
        """Of every parameter by global name."""
        from loongforge.components.llm.llama.parameters import parameter_sizes

        return parameter_sizes(self)

    def kept_per_token(self, tp: int, *, sequence_parallel: bool) -> float:
        """In and out of both norms; q, k, v before and after rotation; attention; gate, up and their product."""
        query, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        residual = 4 * self.hidden_size / (tp if sequence_parallel else 1)
        return residual + 3 * (query + kv + self.mlp_hidden_size) / tp

    @property
    def kv_width(self) -> int:
        """Numbers in the keys and values of a token in one layer."""
        return 2 * self.num_kv_heads * self.head_size

    def flops(self, seq_len: int) -> float:
        """Forward FLOPs per token: weights of layers and output layer, causal attention at its mean length."""
        query, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        layer = self.hidden_size * (2 * query + 2 * kv) + 3 * self.hidden_size * self.mlp_hidden_size
        attention = 2 * query * (seq_len + 1) / 2
        return 2.0 * (self.num_layers * (layer + attention) + self.vocab_size * self.hidden_size)

    def build(self, context: BuildContext) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.llm.llama.module import LlamaModel

        return LlamaModel(self, context)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.llm.llama.hf import name_map

        return name_map(self)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> LlamaConfig:
        """From `config.json` of Llama, Qwen2 or Qwen3."""
        from loongforge.components.llm.llama.hf_config import from_hf

        return from_hf(cls, hf)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of the model type that has these settings."""
        from loongforge.components.llm.llama.hf_config import to_hf

        return to_hf(self)

    def settings(self, *, whole: bool) -> dict[str, Any]:
        """With the width of a head spelled out."""
        return {**super().settings(whole=whole), "head_dim": self.head_size}
