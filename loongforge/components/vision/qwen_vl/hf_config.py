"""`config.json` of the vision encoders of Qwen2-VL and Qwen2.5-VL: read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loongforge.components.hf_settings import HFSettings
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.components.vision.qwen_vl.config import Qwen2ViTConfig, Qwen25ViTConfig, QwenViTConfig

_COMMON = {
    "num_layers": "depth",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
_QWEN25 = {
    "hidden_size": "hidden_size",
    "mlp_hidden_size": "intermediate_size",
    "window_size": "window_size",
    "full_attention_layers": "fullatt_block_indexes",
    "tokens_per_second": "tokens_per_second",
}
_DEFAULTS = {
    **dict(depth=32, num_heads=16, patch_size=14, spatial_merge_size=2, temporal_patch_size=2),
    **dict(intermediate_size=3420, window_size=112, fullatt_block_indexes=[7, 15, 23, 31], tokens_per_second=4),
}


def _settings(values: Mapping[str, Any], activation: str) -> HFSettings:
    hf = HFSettings(values)
    hf.require("hidden_act", activation)
    hf.require("in_channels", 3)
    hf.require("in_chans", 3)
    rope = HFSettings({**hf.get("rope_parameters", {}), "model_type": hf.model_type})
    rope.require("rope_type", "axial", "default")
    rope.require("rope_theta", 10000.0)
    return hf


def _read(hf: HFSettings, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        ours: hf.get(theirs, *([_DEFAULTS[theirs]] if theirs in _DEFAULTS else [])) for ours, theirs in names.items()
    }


def qwen2_from_hf(cls: type[Qwen2ViTConfig], values: Mapping[str, Any]) -> Qwen2ViTConfig:
    """The encoder that the vision section of a Qwen2-VL describes.

    Raises:
        UserError: a setting that this encoder does not compute.
    """
    hf = _settings(values, "quick_gelu")
    width = hf.get("embed_dim", 1280)
    sizes = dict(hidden_size=width, mlp_hidden_size=int(width * hf.get("mlp_ratio", 4)))
    return cls(type="qwen2_vit", **sizes, **_read(hf, _COMMON))


def qwen25_from_hf(cls: type[Qwen25ViTConfig], values: Mapping[str, Any]) -> Qwen25ViTConfig:
    """The same of a Qwen2.5-VL."""
    hf = _settings(values, "silu")
    found = _read(hf, _COMMON | _QWEN25)
    full = [
        layer for layer in found["full_attention_layers"] if layer < found["num_layers"]
    ]  # defaults name 32 layers'
    return cls(type="qwen2_5_vit", **{**found, "full_attention_layers": full})


def _written(config: QwenViTConfig, names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, theirs in names.items()}


def qwen2_to_hf(config: Qwen2ViTConfig) -> dict[str, Any]:
    """The vision section, but for the LLM's width.

    Raises:
        UserError: an inner width that is no multiple.
    """
    ratio, rest = divmod(config.mlp_hidden_size, config.hidden_size)
    if rest:
        raise UserError(
            f"mlp_hidden_size={config.mlp_hidden_size} is no multiple of hidden_size={config.hidden_size}, as "
            "transformers' Qwen2-VL needs"
        )
    own = dict(model_type="qwen2_vl_vision", embed_dim=config.hidden_size, mlp_ratio=ratio, hidden_act="quick_gelu")
    return {**own, "in_channels": 3, **_written(config, _COMMON)}


def qwen25_to_hf(config: Qwen25ViTConfig) -> dict[str, Any]:
    """The vision section, but for the LLM's width."""
    own = dict(model_type="qwen2_5_vl_vision", hidden_act="silu", in_channels=3)
    return {**own, **_written(config, _COMMON | _QWEN25)}
