"""LLaVA-NeXT (arXiv 2407.07895; transformers `LlavaNextForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from loongforge.checkpoint.families.base import ExportFacts, Prefixes, has_output_layer
from loongforge.checkpoint.families.llava import Llava
from loongforge.components.projector.mlp.llava_next import LlavaNextProjectorConfig
from loongforge.components.vision.vit.config import ViTConfig
from loongforge.config.schema import ComponentConfig, ModelConfig


class LlavaNext(Llava):
    """LLaVA-1.5 on the tiles of an image, with a learned row at the end of each line of features."""

    name = "LLaVA-NeXT"
    model_types = ("llava_next",)
    prefixes: ClassVar[Mapping[str, Prefixes]] = {
        **Llava.prefixes,
        "projector": {**Llava.prefixes["projector"], "image_newline": ("", "model.")},
    }

    def components(self, hf: Mapping[str, Any], folder: Path) -> dict[str, ComponentConfig]:
        """As for LLaVA-1.5. But where only the text section says that embeddings are tied, transformers 5 does not tie
        them (4 did): they are not where the folder has an output layer."""
        found = super().components(hf, folder)
        if not hf.get("tie_word_embeddings") and has_output_layer(folder):
            found["llm"] = replace(found["llm"], tie_embeddings=False)  # type: ignore[call-arg]
        return found

    def obstacle(self, model: ModelConfig) -> str | None:
        """As for LLaVA-1.5, with another projector."""
        if not isinstance(model.vision, ViTConfig):
            return "needs a clip_vit or siglip_vit as model.vision"
        if model.vision.has_post_norm:
            return "takes features before the last norm: model.vision.post_norm=false"
        kind = getattr(model.projector, "type", None)
        return None if kind == "llava_next" else f"needs llava_next as model.projector, not {kind}"

    def to_hf(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Of both towers and what is between them."""
        found = super().to_hf(model, facts)
        return {**found, "architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}

    def files(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Processor, and image processor with the sizes that images may be resized to."""
        assert isinstance(model.vision, ViTConfig) and isinstance(model.projector, LlavaNextProjectorConfig)
        found, edge = super().files(model, facts), model.vision.image_size
        images = {
            **found["preprocessor_config.json"],
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": edge},
            "crop_size": {"height": edge, "width": edge},
            "do_center_crop": True,
            "do_pad": True,
            "image_grid_pinpoints": [list(size) for size in model.projector.grid_pinpoints],
        }
        processor = {**found["processor_config.json"], "processor_class": "LlavaNextProcessor"}
        return {"preprocessor_config.json": images, "processor_config.json": {**processor, "image_processor": images}}
