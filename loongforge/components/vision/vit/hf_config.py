"""`config.json` of CLIP's and SigLIP's vision towers: read and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from loongforge.components.hf_settings import HFSettings, hf_activation

if TYPE_CHECKING:
    from loongforge.components.vision.vit.config import ViTConfig

T = TypeVar("T", bound="ViTConfig")


def from_hf(cls: type[T], values: Mapping[str, Any]) -> T:
    """The encoder that a config describes; which hidden state the features are is not the tower's to say.

    Raises:
        UserError: a setting that this encoder does not compute.
    """
    tower, _ = cls.hf_model_types
    hf = HFSettings({"model_type": tower, **values.get("vision_config", values)})
    hf.require("model_type", tower)
    hf.require("num_channels", 3)
    hf.require("attention_dropout", 0.0)
    image, patch = hf.get("image_size"), hf.get("patch_size")
    return cls(
        type="clip_vit" if tower.startswith("clip") else "siglip_vit",
        hidden_size=hf.get("hidden_size"),
        num_layers=hf.get("num_hidden_layers"),
        num_heads=hf.get("num_attention_heads"),
        mlp_hidden_size=hf.get("intermediate_size"),
        activation=hf.activation(),  # type: ignore[arg-type]
        norm_eps=float(hf.get("layer_norm_eps")),
        image_size=image,
        patch_size=patch,
        drop_remainder=image % patch != 0,
    )


def to_hf(config: ViTConfig) -> dict[str, Any]:
    """What transformers needs to compute the same."""
    found = {
        "model_type": config.hf_model_types[0],
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_hidden_size,
        "hidden_act": hf_activation(config.activation),
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
    }
    return found if config.has_class_token else {**found, "vision_use_head": False}
