"""`config.json` of Llama, Mistral, Qwen2 and Qwen3: read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from loongforge.components.hf_settings import HFSettings
from loongforge.components.llm.llama.rope_scaling import RopeScalingConfig
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.components.llm.llama.config import LlamaConfig

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_EPS = 1e-6  # transformers' default, which some files leave out
_FULL, _WINDOW = "full_attention", "sliding_attention"
_OPTIONAL = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor")

Config = TypeVar("Config", bound="LlamaConfig")


def from_hf(cls: type[Config], values: Mapping[str, Any], **more: Any) -> Config:
    """The decoder that a config describes.

    Args:
        cls: Of the family.
        values: `config.json`.
        more: Settings that the family alone has.

    Raises:
        UserError: a setting that this decoder does not compute.
    """
    hf = HFSettings(values)
    kind = hf.model_type
    hf.require("model_type", *cls.hf_model_types)
    _require_plain(hf)
    theta, scaling = _rope(hf)
    heads, hidden, layers = hf.get("num_attention_heads"), hf.get("hidden_size"), hf.get("num_hidden_layers")
    head = hf.get("head_dim", 128 if kind == "qwen3" else hidden // heads)
    window, window_layers = _window(hf, layers)
    return cls(
        type=kind,
        vocab_size=hf.get("vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        max_seq_len=hf.get("max_position_embeddings"),
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads", 8 if kind == "mistral" else heads),
        mlp_hidden_size=hf.get("intermediate_size"),
        head_dim=None if head * heads == hidden else head,
        rope_theta=float(theta),
        rope_scaling=scaling,
        norm_eps=float(hf.get("rms_norm_eps", _EPS)),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        qkv_bias=kind == "qwen2",
        qk_norm=kind.startswith("qwen3"),
        sliding_window=window,
        window_layers=window_layers,
        **more,
    )


def _require_plain(hf: HFSettings) -> None:
    """Refuses what would change the numbers without a word."""
    hf.require("hidden_act", "silu")
    hf.require("attention_bias", False, *([True] if hf.model_type == "qwen2" else []))
    hf.require("mlp_bias", False)
    hf.require("quantization_config", None)
    hf.require("attention_dropout", 0.0)


def _window(hf: HFSettings, layers: int) -> tuple[int | None, list[int] | None]:
    """The sliding window, and the layers that have it (None: all of them)."""
    kinds = hf.get("layer_types", None)
    others = set(kinds or []) - {_FULL, _WINDOW}
    if others:
        raise UserError(f"config.json: layer_types has {', '.join(sorted(others))}; covered: {_FULL}, {_WINDOW}")
    if hf.model_type == "llama":  # it has no windows, whatever a file says
        if kinds and _WINDOW in kinds:
            raise UserError(f"config.json: layer_types has {_WINDOW}, which model_type=llama does not; use mistral")
        return None, None
    if hf.model_type == "mistral":
        if kinds and len(set(kinds)) > 1:
            raise UserError("config.json: layer_types of model_type=mistral must be of one kind")
        # a key that is not there has transformers' default; null switches the window off
        window = hf.values.get("sliding_window", 4096)
        return (None if kinds and kinds[0] == _FULL else window), None
    if not hf.get("use_sliding_window", False):
        if kinds and _WINDOW in kinds:
            raise UserError(f"config.json: layer_types has {_WINDOW}, but use_sliding_window is not true")
        return None, None
    window = hf.get("sliding_window", 4096)
    if hf.model_type == "qwen3_moe":
        return window, None
    if kinds is None:
        chosen = list(range(hf.get("max_window_layers", 28), layers))
    else:
        chosen = [layer for layer, kind in enumerate(kinds) if kind == _WINDOW]
    return (window, None if len(chosen) == layers else chosen) if chosen else (None, None)


def _rope(hf: HFSettings) -> tuple[float, RopeScalingConfig | None]:
    """Base and stretch of the rotary frequencies, in the spelling of transformers 5 or 4."""
    given = {**hf.get("rope_scaling", {}), **hf.get("rope_parameters", {})}
    theta = given.get("rope_theta", hf.get("rope_theta", 10000.0))
    given["rope_type"] = given.get("rope_type", given.get("type"))
    rope = HFSettings({**given, "model_type": hf.model_type})
    rope.require("rope_type", "default", "llama3", "linear", "yarn")
    for key, neutral in (
        ("partial_rotary_factor", 1.0),
        ("truncate", True),
        ("mscale", None),
        ("mscale_all_dim", None),
    ):
        rope.require(key, neutral)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return theta, None
    scaling = {key: given[key] for key in _OPTIONAL if given.get(key) is not None}
    if kind != "linear":
        inside = given.get("original_max_position_embeddings", hf.get("original_max_position_embeddings", None))
        scaling["original_max_position_embeddings"] = inside or hf.get("max_position_embeddings")
    found = RopeScalingConfig(rope_type=kind, factor=float(rope.get("factor")), **scaling)
    for problem in found.problems():
        raise UserError(f"config.json: {problem}")
    return theta, found


def hf_kind(config: LlamaConfig) -> str:
    """The model type of transformers that has a decoder's settings.

    Raises:
        UserError: none has.
    """
    own = config.hf_model_types[0]
    if config.attention != "causal":
        raise UserError(f"no model type of transformers computes model.llm.attention={config.attention}")
    if config.qk_norm and config.qkv_bias:
        raise UserError("no model type of transformers has both qk_norm and qkv_bias")
    kind = "qwen2" if config.qkv_bias else "mistral" if config.sliding_window or own == "mistral" else "llama"
    if config.qk_norm:
        kind = own if own == "qwen3_moe" else "qwen3"
    if kind != own and own == "qwen3_moe":
        raise UserError("model_type qwen3_moe of transformers has qk_norm=true and qkv_bias=false")
    if kind in ("mistral", "qwen3_moe") and len(set(config.windows)) > 1:
        raise UserError(f"model_type {kind} of transformers has one sliding window for all layers: window_layers=null")
    return kind


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """What transformers needs to compute the same."""
    kind = hf_kind(config)
    scaling = _scaling(config.rope_scaling)
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
        **_window_keys(kind, config),
    }
    return {**found, "attention_bias": False} if kind in ("llama", "qwen3", "qwen3_moe") else found


def _scaling(scaling: RopeScalingConfig | None) -> dict[str, Any]:
    if scaling is None:
        return {"rope_type": "default"}
    keys = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_fast", "beta_slow", "attention_factor")}
    kept = {key: getattr(scaling, key) for key in keys.get(scaling.rope_type, ())}
    if scaling.rope_type != "linear":
        kept["original_max_position_embeddings"] = scaling.original_max_position_embeddings
    given = {key: value for key, value in kept.items() if value is not None}
    return {"rope_type": scaling.rope_type, "factor": scaling.factor, **given}


def _window_keys(kind: str, config: LlamaConfig) -> dict[str, Any]:
    if kind == "llama":
        return {}
    windows = config.windows
    window = next((window for window in windows if window), None)
    if kind == "mistral":
        return {"sliding_window": window}
    found: dict[str, Any] = {"use_sliding_window": window is not None, "sliding_window": window}
    if kind == "qwen3_moe":
        return found
    # readers older than layer_types take the layers from max_window_layers on
    first = windows.index(window) if window else config.num_layers
    types = [_WINDOW if size else _FULL for size in windows]
    return {**found, "max_window_layers": first, "layer_types": types}
