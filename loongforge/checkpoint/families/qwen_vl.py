"""Qwen2-VL and Qwen2.5-VL (arXiv 2409.12191, 2502.13923; transformers `Qwen2VLForConditionalGeneration` and kin)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from loongforge.checkpoint.families.base import ExportFacts, Family, Prefixes, component_from_hf
from loongforge.checkpoint.families.processor_files import token_text
from loongforge.checkpoint.families.qwen_vl_files import processor_files, processor_settings, with_limits
from loongforge.components.base import FamilyConfig
from loongforge.components.vision.qwen_vl.config import QwenViTConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, ModelConfig

_SPECIAL = {
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


class Qwen2VL(Family):
    """An encoder of images of any size, the patch merger inside it, a decoder with positions on three axes."""

    name = "Qwen2-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    architecture: ClassVar[str] = "Qwen2VLForConditionalGeneration"
    vision_type: ClassVar[str] = "qwen2_vit"
    norm: ClassVar[str] = "layer_norm"
    # on the hub and as transformers saves it; in its memory
    prefixes: ClassVar[Mapping[str, Prefixes]] = {
        "vision": {"": ("visual.", "model.visual.")},
        "projector": {"": ("visual.merger.", "model.visual.merger.")},
        "llm": {"": ("model.", "model.language_model."), "lm_head.": ("",)},
    }

    def sections(self, hf: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Files of transformers 4 have the text settings beside the vision section."""
        kind = self.model_types[0]
        text = hf.get("text_config") or {key: value for key, value in hf.items() if key != "vision_config"}
        tied = bool(hf.get("tie_word_embeddings", False) or text.get("tie_word_embeddings", False))
        return {
            "vision": {**hf["vision_config"], "model_type": f"{kind}_vision"},
            "projector": hf,
            "llm": {**text, "model_type": f"{kind}_text", "tie_word_embeddings": tied},
        }

    def components(self, hf: Mapping[str, Any], folder: Path) -> dict[str, ComponentConfig]:
        """With the limits of the image processor."""
        found = {name: component_from_hf(name, part) for name, part in self.sections(hf).items()}
        vision, llm = found["vision"], found["llm"]
        assert isinstance(vision, QwenViTConfig)
        key = "out_hidden_size" if "out_hidden_size" in hf["vision_config"] else "hidden_size"
        width, wanted = hf["vision_config"].get(key), llm.hidden_size  # type: ignore[attr-defined]
        if width is not None and width != wanted:
            raise UserError(f"config.json: vision_config.{key}={width} is not the text model's hidden_size={wanted}")
        for name, value in processor_settings(folder, vision).items():
            setattr(vision, name, value)
        return found

    def data_keys(self, hf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The image token; data keep `<image>`, around which the chat template writes begin and end of an image."""
        return {"image_token": token_text(folder, int(hf.get("image_token_id", 151655))), "placeholder": "<image>"}

    def obstacle(self, model: ModelConfig) -> str | None:
        """Encoder, merger and decoder must be this family's."""
        vision, projector, llm = model.vision, model.projector, model.llm
        if getattr(vision, "type", None) != self.vision_type:
            return f"needs a {self.vision_type} as model.vision"
        if getattr(projector, "type", None) != "patch_merger" or projector.norm != self.norm:  # type: ignore[union-attr]
            return f"needs a patch_merger with norm={self.norm} as model.projector"
        if projector.norm_eps != 1e-6 or projector.merge_size != vision.merge_size:  # type: ignore[union-attr]
            return "needs norm_eps=1e-6 and the encoder's merge_size in model.projector"
        wanted = f"{self.model_types[0]}_text"
        return None if llm.type == wanted else f"needs {wanted} as model.llm, not {llm.type}"

    def to_hf(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Of all parts; ids of tokens that the tokenizer lacks are left to transformers."""
        vision, llm = model.vision, model.llm
        assert isinstance(vision, QwenViTConfig) and isinstance(llm, FamilyConfig)
        text = llm.to_hf()
        tied = text.pop("tie_word_embeddings")
        width = {"out_hidden_size" if vision.gated else "hidden_size": text["hidden_size"]}
        found = {
            "architectures": [self.architecture],
            "model_type": self.model_types[0],
            "vision_config": {**vision.to_hf(), **width},
            "text_config": text,
            "image_token_id": facts.image_token_id,
            "tie_word_embeddings": tied,
        }
        vocabulary = {} if facts.tokenizer is None else facts.tokenizer.get_vocab()
        return {**found, **{key: vocabulary[token] for key, token in _SPECIAL.items() if token in vocabulary}}

    def files(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Image and video processor, also where transformers 5 looks for them."""
        assert isinstance(model.vision, QwenViTConfig)
        return processor_files(model.vision, f"{self.architecture.removesuffix('ForConditionalGeneration')}Processor")

    def adjusted(self, file: str, theirs: dict[str, Any], model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """With the recipe's limits of pixels."""
        assert isinstance(model.vision, QwenViTConfig)
        return with_limits(file, theirs, model.vision)


class Qwen25VL(Qwen2VL):
    """With windows, RMSNorm and SwiGLU in the encoder."""

    name = "Qwen2.5-VL"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    architecture: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"
    vision_type: ClassVar[str] = "qwen2_5_vit"
    norm: ClassVar[str] = "rms_norm"
