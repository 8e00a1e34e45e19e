"""`config.json` of InternViT and DINOv2: read and written. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loongforge.components.hf_settings import HFSettings, hf_activation
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from loongforge.components.vision.vit.config import ViTConfig
    from loongforge.components.vision.vit.dinov2 import Dinov2Config
    from loongforge.components.vision.vit.internvit import InternViTConfig

_NONE = (
    "hidden_dropout_prob",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "projection_dropout",
    "drop_path_rate",
)


def internvit_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `InternViTConfig` takes from a config.

    Raises:
        UserError: a setting that this encoder does not compute.
    """
    hf = HFSettings(values)
    hf.require("use_absolute_position_embeddings", True)
    hf.require("norm_type", "layer_norm", "rms_norm")
    return {
        **_common(hf),
        "mlp_hidden_size": hf.get("intermediate_size", 4096),
        "norm": hf.get("norm_type", "layer_norm"),
        "qkv_bias": hf.get("attention_bias", False),
        "qk_norm": hf.get("use_qk_norm", False),
        "post_norm": not hf.get("use_mean_pooling", True),
    }


def internvit_to_hf(config: InternViTConfig) -> dict[str, Any]:
    """What transformers needs to compute the same."""
    edges = {"image_size": [config.image_size] * 2, "patch_size": [config.patch_size] * 2}
    return {
        "model_type": "internvl_vision",
        "architectures": ["InternVLVisionModel"],
        **_common_to_hf(config),
        **edges,
        "intermediate_size": config.mlp_hidden_size,
        "norm_type": config.norm,
        "attention_bias": config.qkv_bias,
        "use_qk_norm": config.qk_norm,
        "use_mean_pooling": not config.post_norm,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
    }


def dinov2_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `Dinov2Config` takes from a config.

    Raises:
        UserError: a setting that this encoder does not compute.
    """
    hf = HFSettings(values)
    swiglu = hf.get("use_swiglu_ffn", False)
    inner = int(hf.get("hidden_size") * hf.get("mlp_ratio", 4))
    registers = hf.get("num_register_tokens", 4) if hf.model_type == "dinov2_with_registers" else 0
    return {
        **_common(hf),
        "mlp_hidden_size": _swiglu_width(inner) if swiglu else inner,
        "swiglu": swiglu,
        "qkv_bias": hf.get("qkv_bias", True),
        "registers": registers,
    }


def dinov2_to_hf(config: Dinov2Config) -> dict[str, Any]:
    """What transformers needs to compute the same.

    Raises:
        UserError: an inner width that no whole `mlp_ratio` gives.
    """
    ratios = [n for n in range(1, 17) if _inner(config, n) == config.mlp_hidden_size]
    if not ratios:
        raise UserError(
            f"mlp_hidden_size={config.mlp_hidden_size}: DINOv2 in transformers has a whole mlp_ratio; nearest: "
            f"{_inner(config, max(1, round(config.mlp_hidden_size / _inner(config, 1))))}"
        )
    kind = "dinov2_with_registers" if config.registers else "dinov2"
    return {
        "model_type": kind,
        "architectures": ["Dinov2WithRegistersModel" if config.registers else "Dinov2Model"],
        **_common_to_hf(config),
        "mlp_ratio": ratios[0],
        "use_swiglu_ffn": config.swiglu,
        "qkv_bias": config.qkv_bias,
        **({"num_register_tokens": config.registers} if config.registers else {}),
    }


def _inner(config: Dinov2Config, ratio: int) -> int:
    inner = config.hidden_size * ratio
    return _swiglu_width(inner) if config.swiglu else inner


def _swiglu_width(inner: int) -> int:
    """Two thirds, in multiples of 8."""
    return (inner * 2 // 3 + 7) // 8 * 8


def _common(hf: HFSettings) -> dict[str, Any]:
    hf.require("num_channels", 3)
    for key in _NONE:
        hf.require(key, 0.0, 0)
    image, patch = _edge(hf, "image_size"), _edge(hf, "patch_size")
    return {
        "hidden_size": hf.get("hidden_size"),
        "num_layers": hf.get("num_hidden_layers"),
        "num_heads": hf.get("num_attention_heads"),
        "activation": hf.activation() if hf.values.get("hidden_act") else "gelu",
        "norm_eps": float(hf.get("layer_norm_eps", 1e-6)),
        "image_size": image,
        "patch_size": patch,
        "drop_remainder": image % patch != 0,
    }


def _edge(hf: HFSettings, key: str) -> int:
    value = hf.get(key)
    edges = set(value) if isinstance(value, list | tuple) else {value}
    if len(edges) != 1:
        raise UserError(f"config.json: {key}={value!r} is not covered for model_type={hf.model_type}: no square")
    return int(edges.pop())


def _common_to_hf(config: ViTConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_act": hf_activation(config.activation),
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
    }
