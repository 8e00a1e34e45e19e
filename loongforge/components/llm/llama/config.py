"""Llama-type decoders: Llama 2/3, and with other settings Qwen2, Qwen3 and Mistral (`families.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loongforge.components.llm.base import LLMConfig, ParameterSize
from loongforge.components.llm.llama import sizes
from loongforge.components.llm.llama.rope_scaling import RopeScalingConfig

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap
    from loongforge.components.products import Product


@dataclass(kw_only=True)
class LlamaConfig(LLMConfig):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU (transformers `LlamaForCausalLM` and kin)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("llama",)
    hf_free: ClassVar[frozenset[str]] = frozenset({"max_seq_len", "vocab_size", "attention"})

    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads, each shared by `num_heads / num_kv_heads` query heads."""
    mlp_hidden_size: int
    """Inner width of the feed-forward layers."""
    head_dim: int | None = None
    """Width of a head; null: hidden_size / num_heads."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScalingConfig | None = None
    """Stretch for long contexts; null: none."""
    mrope_section: list[int] | None = None
    """Rotary frequencies that turn with the temporal, vertical and horizontal position in an image (Qwen2-VL); together
    half a head. Null: positions have one axis."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    tie_embeddings: bool = False
    """The output layer is the token embedding."""
    qkv_bias: bool = False
    """Biases on q, k and v (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm on each head's q and k (Qwen3)."""
    sliding_window: int | None = None
    """Latest positions that a token attends to, its own included (Mistral 7B v0.1: 4096); null: all before it."""
    window_layers: list[int] | None = None
    """Layers, counted from 0, that have the sliding window; null: all."""
    attention: Literal["causal", "mmca"] = "causal"
    """What a token attends to. `mmca`: multi-modal causal attention (DeepSpeed-VisualChat): text to earlier text and to
    earlier images with a softmax each, image tokens to themselves alone."""

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def windows(self) -> list[int | None]:
        """The sliding window of each layer."""
        chosen = range(self.num_layers) if self.window_layers is None else self.window_layers
        return [self.sliding_window if layer in chosen else None for layer in range(self.num_layers)]

    def feed_forward(self, layer: int) -> sizes.FeedForwardSizes:
        """Sizes of a layer's feed-forward part."""
        weights = 3 * self.hidden_size * self.mlp_hidden_size
        return sizes.FeedForwardSizes(divided=weights, products=weights, kept=3 * self.mlp_hidden_size)

    def feed_forward_parts(self, layer: int) -> list[tuple[str, int]]:
        """What stands in the names of a layer's feed-forward parts, and their inner widths."""
        return [("", self.mlp_hidden_size)]

    def problems(self, tp: int, pp: int, ep: int = 1) -> list[str]:
        """Sizes that do not fit one another or the layout."""
        found = super().problems(tp, pp, ep) + self._own_problems()
        for name in ("num_heads", "mlp_hidden_size"):
            if getattr(self, name) % tp:
                found.append(f"{name}={getattr(self, name)} cannot be divided over parallel.tp={tp}")
        kv = self.num_kv_heads
        if max(tp, kv) % min(tp, kv) or (self.num_heads + 2 * kv) * self.head_size % tp:
            found.append(f"num_kv_heads={kv} cannot be divided over parallel.tp={tp}, nor be shared by its ranks")
        if self.num_layers < pp:
            found.append(f"num_layers={self.num_layers} are fewer than the stages of parallel.pp={pp}")
        return found

    def _own_problems(self) -> list[str]:
        """Whatever the layout."""
        found = []
        if self.head_dim is None and self.hidden_size % self.num_heads:
            found.append(f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}")
        if self.head_size % 2:
            found.append(f"head_dim={self.head_size} is odd; rotary positions need an even one")
        if self.num_heads % self.num_kv_heads:
            found.append(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.mrope_section is not None and 2 * sum(self.mrope_section) != self.head_size:
            found.append(f"mrope_section={list(self.mrope_section)} must add up to half of head_dim={self.head_size}")
        if self.sliding_window is not None and self.sliding_window < 1:
            found.append(f"sliding_window={self.sliding_window} must be at least 1, or null")
        if self.sliding_window is not None and self.attention == "mmca":
            found.append("attention=mmca has no sliding_window; allowed: null")
        wrong = [layer for layer in self.window_layers or [] if not 0 <= layer < self.num_layers]
        if wrong:
            found.append(f"window_layers: {wrong[0]} is no layer; allowed: 0 .. {self.num_layers - 1}")
        return found + (self.rope_scaling.problems() if self.rope_scaling else [])

    def small_copy(self, *, num_layers: int, divisor: int) -> Self:
        """The same kind of decoder with heads of width 8."""
        heads = divisor * min(4, self.num_heads // self.num_kv_heads)
        windowed = [layer for layer, window in enumerate(self.windows[:num_layers]) if window]
        return replace(
            self,
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=divisor,
            head_dim=8 if self.head_dim else None,
            mrope_section=[2, 1, 1] if self.mrope_section else None,
            hidden_size=8 * heads,
            mlp_hidden_size=16 * heads,
            vocab_size=64 * divisor,
            max_seq_len=256,
            sliding_window=8 if self.sliding_window else None,
            window_layers=None if self.window_layers is None else windowed or [num_layers - 1],
            init_std=0.08,
            init_from=None,
        )

    def num_params(self) -> int:
        """Parameters of the whole model."""
        return sizes.num_params(self)

    def params_on(self, tp: int, pp: int, stage: int, ep: int = 1) -> int:
        """Parameters that a rank of a pipeline stage holds; norms are whole on every rank."""
        return sizes.params_on(self, tp, pp, stage, ep)

    def parameter_sizes(self) -> dict[str, ParameterSize]:
        """Of every parameter by global name."""
        from loongforge.components.llm.llama.parameters import parameter_sizes

        return parameter_sizes(self)

    def adapter_sizes(self) -> dict[str, ParameterSize]:
        """Of the adapters that `lora` asks for."""
        from loongforge.components.llm.llama.parameters import adapter_sizes

        return adapter_sizes(self)

    def kept_per_token(self, tp: int, *, sequence_parallel: bool) -> float:
        """In and out of both norms; q, k, v before and after rotation; attention; gate, up and their product."""
        return sizes.kept_per_token(self, tp, sequence_parallel)

    @property
    def kv_width(self) -> int:
        """Numbers in the keys and values of a token in one layer."""
        return 2 * self.num_kv_heads * self.head_size

    def flops(self, seq_len: int) -> float:
        """Forward FLOPs per token: weights of layers and output layer, causal attention at its mean length."""
        return sizes.flops(self, seq_len)

    def flops_with_images(self, seq_len: float, image_share: float) -> float:
        """Likewise; where attention treats images apart, image tokens attend to nothing."""
        found = self.flops(seq_len)  # type: ignore[arg-type]
        if self.attention != "mmca":
            return found
        text, images = seq_len * (1 - image_share), seq_len * image_share
        pairs = (text * (text + 1) / 2 + text * images) / max(seq_len, 1)
        query = self.num_heads * self.head_size
        return found - 4.0 * self.num_layers * query * ((seq_len + 1) / 2 - pairs)

    def products(self) -> list[Product]:
        """Of embedding, layers, adapters and output layer."""
        from loongforge.components.llm.llama.products import products

        return products(self)

    def build(self, context: BuildContext) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.llm.llama.module import LlamaModel

        return LlamaModel(self, context)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.llm.llama.hf import name_map

        return name_map(self)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """From the `config.json` of the family."""
        from loongforge.components.llm.llama.hf_config import from_hf

        return from_hf(cls, hf)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of the model type that has these settings."""
        from loongforge.components.llm.llama.hf_config import to_hf

        return to_hf(self)

    @property
    def implementation(self) -> str:
        """The types of `families.py` differ in their defaults only."""
        return "llama"

    def settings(self, *, whole: bool) -> dict[str, Any]:
        """With the width of a head and the window of each layer spelled out."""
        found = {**super().settings(whole=whole), "head_dim": self.head_size, "sliding_window": self.windows}
        del found["window_layers"]
        return found
