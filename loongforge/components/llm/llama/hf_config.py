"""`config.json` of Llama, Qwen2 and Qwen3: read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loongforge.components.hf_settings import HFSettings
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.components.llm.llama.config import LlamaConfig, RopeScalingConfig

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_EPS = {"llama": 1e-6, "qwen2": 1e-6, "qwen3": 1e-6}  # transformers' defaults, which some files leave out
_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def from_hf(cls: type[LlamaConfig], values: Mapping[str, Any]) -> LlamaConfig:
    """The decoder that a config describes.

    Raises:
        UserError: a setting that this decoder does not compute.
    """
    hf = HFSettings(values)
    kind = hf.model_type
    _require_plain(hf)
    theta, scaling = _rope(hf)
    heads, hidden = hf.get("num_attention_heads"), hf.get("hidden_size")
    head = hf.get("head_dim", 128 if kind == "qwen3" else hidden // heads)
    return cls(
        type="llama",
        vocab_size=hf.get("vocab_size"),
        hidden_size=hidden,
        num_layers=hf.get("num_hidden_layers"),
        max_seq_len=hf.get("max_position_embeddings"),
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads", heads),
        mlp_hidden_size=hf.get("intermediate_size"),
        head_dim=None if head * heads == hidden else head,
        rope_theta=float(theta),
        rope_scaling=scaling,
        norm_eps=float(hf.get("rms_norm_eps", _EPS[kind])),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        qkv_bias=kind == "qwen2",
        qk_norm=kind == "qwen3",
    )


def _require_plain(hf: HFSettings) -> None:
    """Refuses what would change the numbers without a word."""
    if hf.model_type not in ARCHITECTURES:
        hf.require("model_type", *ARCHITECTURES)
    hf.require("hidden_act", "silu")
    hf.require("attention_bias", False, *([True] if hf.model_type == "qwen2" else []))
    hf.require("mlp_bias", False)
    hf.require("use_sliding_window", False)
    hf.require("quantization_config", None)
    hf.require("attention_dropout", 0.0)
    others = set(hf.get("layer_types", ["full_attention"])) - {"full_attention"}
    if others:
        raise UserError(f"config.json: layer_types has {', '.join(sorted(others))}; covered: full_attention")


def _rope(hf: HFSettings) -> tuple[float, RopeScalingConfig | None]:
    """Base and stretch of the rotary frequencies, in the spelling of transformers 5 or 4."""
    from loongforge.components.llm.llama.config import RopeScalingConfig

    given = {**hf.get("rope_scaling", {}), **hf.get("rope_parameters", {})}
    theta = given.get("rope_theta", hf.get("rope_theta", 10000.0))
    rope = HFSettings({"model_type": hf.model_type, "rope_type": given.get("rope_type", given.get("type")), **given})
    rope.require("rope_type", "default", "llama3")
    rope.require("partial_rotary_factor", 1.0)
    if rope.get("rope_type", "default") == "default":
        return theta, None
    original = given.get("original_max_position_embeddings", hf.get("original_max_position_embeddings", None))
    values = {**given, "original_max_position_embeddings": original}
    numbers = HFSettings({**values, "model_type": hf.model_type})
    return theta, RopeScalingConfig(rope_type="llama3", **{key: numbers.get(key) for key in _SCALING})


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """What transformers needs to compute the same."""
    if config.qk_norm and config.qkv_bias:
        raise UserError("no model type of transformers has both qk_norm and qkv_bias")
    kind = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    scaling = asdict(config.rope_scaling) if config.rope_scaling else {"rope_type": "default"}
    found = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "max_position_embeddings": config.max_seq_len,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.mlp_hidden_size,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
        "tie_word_embeddings": config.tie_embeddings,
    }
    return found if kind == "qwen2" else {**found, "attention_bias": False}
