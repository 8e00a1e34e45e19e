"""LLaVA-1.5 (arXiv 2310.03744; transformers `LlavaForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from loongforge.checkpoint.families.base import ExportFacts, Family, Prefixes
from loongforge.checkpoint.families.processor_files import clip_image_processor, token_text
from loongforge.components.base import FamilyConfig
from loongforge.components.hf_settings import HFSettings
from loongforge.components.vision.vit.config import SiglipViTConfig, ViTConfig
from loongforge.components.vision.vit.hf import head_shapes
from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, ModelConfig


class Llava(Family):
    """A CLIP or SigLIP tower, two linear maps, a language model."""

    name = "LLaVA-1.5"
    model_types = ("llava",)
    # written by transformers 5; in its memory; on the hub
    prefixes: ClassVar[Mapping[str, Prefixes]] = {
        "vision": {
            "": (
                "vision_tower.",
                "vision_tower.vision_model.",
                "model.vision_tower.",
                "model.vision_tower.vision_model.",
            )
        },
        "projector": {"": ("multi_modal_projector.", "model.multi_modal_projector.")},
        "llm": {
            "": ("language_model.model.", "model.language_model."),
            "lm_head.": ("language_model.", ""),
        },
    }

    def sections(self, hf: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The projector's settings are keys of the whole."""
        text = {**hf["text_config"], "tie_word_embeddings": is_tied(hf)}
        return {"vision": hf["vision_config"], "projector": hf, "llm": text}

    def components(self, hf: Mapping[str, Any], folder: Path) -> dict[str, ComponentConfig]:
        """With the hidden state that the features are."""
        found = super().components(hf, folder)
        found["vision"] = select_features(found["vision"], hf)
        return found

    def data_keys(self, hf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The image token."""
        return {"image_token": token_text(folder, image_token_index(hf))}

    def required(self, name: str, component: FamilyConfig, hf: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        """SigLIP's pooling head, which the features do not depend on."""
        if not isinstance(component, SiglipViTConfig) or not hf["vision_config"].get("vision_use_head", True):
            return {}
        return head_shapes(component)

    def obstacle(self, model: ModelConfig) -> str | None:
        """Towers without a class token keep all features, and transformers takes them before a last norm."""
        if not isinstance(model.vision, ViTConfig):
            return "needs a clip_vit or siglip_vit as model.vision"
        if model.vision.has_post_norm:
            return "takes features before the last norm: model.vision.post_norm=false"
        kind = getattr(model.projector, "type", None)
        return None if kind == "mlp2x_gelu" else f"needs mlp2x_gelu as model.projector, not {kind}"

    def to_hf(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Of both towers and what is between them."""
        vision, projector, llm = model.vision, model.projector, model.llm
        assert isinstance(vision, ViTConfig) and isinstance(projector, FamilyConfig) and isinstance(llm, FamilyConfig)
        text = llm.to_hf()
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "vision_config": vision.to_hf(),
            "text_config": text,
            **projector.to_hf(),
            "vision_feature_layer": vision.feature_layer,
            "vision_feature_select_strategy": "default" if vision.has_class_token else "full",
            "image_token_index": facts.image_token_id,
            "image_seq_length": facts.num_image_tokens,
            "tie_word_embeddings": text["tie_word_embeddings"],
        }

    def files(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Processor, and image processor as CLIP's or SigLIP's."""
        vision = model.vision
        assert isinstance(vision, ViTConfig)
        images = clip_image_processor(vision)
        processor = {
            "processor_class": "LlavaProcessor",
            "patch_size": vision.patch_size,
            "num_additional_image_tokens": int(vision.has_class_token),
            "vision_feature_select_strategy": "default" if vision.has_class_token else "full",
            "image_token": facts.image_token,
        }
        return {"preprocessor_config.json": images, "processor_config.json": {**processor, "image_processor": images}}


def is_tied(hf: Mapping[str, Any]) -> bool:
    """Whether the output layer is the embedding: as in transformers, where the whole or its text section says so."""
    return bool(hf["text_config"].get("tie_word_embeddings") or hf.get("tie_word_embeddings"))


def image_token_index(hf: Mapping[str, Any]) -> int:
    """The id of the image token, in the spelling of transformers 4 or 5."""
    index = hf.get("image_token_index", hf.get("image_token_id"))
    if index is None:
        raise UserError("config.json has no 'image_token_index'")
    return int(index)


def select_features(vision: ComponentConfig, hf: Mapping[str, Any]) -> ComponentConfig:
    """The tower with the hidden state that a LLaVA-like model takes."""
    assert isinstance(vision, ViTConfig)
    settings = HFSettings(hf)
    settings.require("vision_feature_select_strategy", "default" if vision.has_class_token else "full")
    layer = settings.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise UserError(f"config.json: vision_feature_layer={layer!r} is not covered; covered: one layer")
    chosen = replace(vision, feature_layer=layer)
    return replace(chosen, post_norm=False) if isinstance(chosen, SiglipViTConfig) else chosen
