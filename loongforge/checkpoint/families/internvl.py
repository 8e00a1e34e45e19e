"""InternVL 2.5 and 3 in the form of transformers (arXiv 2412.05271, 2504.10479; `InternVLForConditionalGeneration`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from loongforge.checkpoint.families.base import ExportFacts, Family, Prefixes, has_output_layer
from loongforge.checkpoint.families.processor_files import (
    common_settings,
    image_processor_settings,
    token_text,
    with_sections,
)
from loongforge.checkpoint.json_file import read_json
from loongforge.components.base import FamilyConfig
from loongforge.components.hf_settings import HFSettings
from loongforge.components.llm.base import LLMConfig
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.vision.vit.internvit import InternViTConfig
from loongforge.config.errors import UserError
from loongforge.config.schema import ComponentConfig, ModelConfig

_BEGIN, _END = "<img>", "</img>"
_MOST_TILES = 12  # of transformers' image processor, where a folder says nothing


class InternVL(Family):
    """InternViT, pixel shuffle and two linear maps, a language model; images are cut into tiles."""

    name = "InternVL"
    model_types = ("internvl",)
    # written by transformers; in its memory
    prefixes: ClassVar[Mapping[str, Prefixes]] = {
        "vision": {"": ("vision_tower.", "model.vision_tower.")},
        "projector": {"": ("multi_modal_projector.", "model.multi_modal_projector.")},
        "llm": {
            "": ("language_model.model.", "model.language_model."),
            "lm_head.": ("language_model.", ""),
        },
    }

    def sections(self, hf: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The projector's settings are keys of the whole, which also says whether embeddings are tied."""
        text = {**hf["text_config"], "tie_word_embeddings": bool(hf.get("tie_word_embeddings", True))}
        return {"vision": hf["vision_config"], "projector": hf, "llm": text}

    def components(self, hf: Mapping[str, Any], folder: Path) -> dict[str, ComponentConfig]:
        """With the hidden state that the features are. Where `config.json` does not say whether embeddings are tied,
        they are if the folder has no output layer, as in transformers."""
        found = super().components(hf, folder)
        vision, llm, settings = found["vision"], found["llm"], HFSettings(hf)
        if not isinstance(vision, InternViTConfig):
            raise UserError(f"config.json: vision_config.model_type is not covered in an InternVL: {vision.type}")
        settings.require("vision_feature_select_strategy", "default")
        layer = settings.get("vision_feature_layer", -1)
        if not isinstance(layer, int):
            raise UserError(f"config.json: vision_feature_layer={layer!r} is not covered; covered: one layer")
        _require_length(folder, vision, found["projector"])
        found["vision"] = replace(vision, feature_layer=layer)
        if "tie_word_embeddings" not in hf:
            found["llm"] = replace(llm, tie_embeddings=not has_output_layer(folder))  # type: ignore[call-arg]
        return found

    def data_keys(self, hf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """The image token, what stands around an image's, and how many tiles an image has at most."""
        token = token_text(folder, int(HFSettings(hf).get("image_token_id")))
        begin, end = _ends(folder)
        keys: dict[str, Any] = {"image_token": token, "image_begin": begin, "image_end": end}
        if token != "<image>":
            keys["placeholder"] = "<image>"
        return {**keys, "max_tiles": image_processor_settings(folder).get("max_patches", _MOST_TILES)}

    def obstacle(self, model: ModelConfig) -> str | None:
        """Another encoder or projector."""
        if not isinstance(model.vision, InternViTConfig):
            return "needs an internvit as model.vision"
        kind = getattr(model.projector, "type", None)
        return None if kind == "pixel_shuffle_mlp" else f"needs pixel_shuffle_mlp as model.projector, not {kind}"

    def to_hf(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Of both towers and what is between them."""
        vision, projector, llm = model.vision, model.projector, model.llm
        assert isinstance(vision, InternViTConfig) and isinstance(projector, FamilyConfig)
        assert isinstance(llm, FamilyConfig) and isinstance(llm, LLMConfig)
        text = llm.to_hf()
        return {
            "architectures": ["InternVLForConditionalGeneration"],
            "model_type": "internvl",
            "vision_config": vision.to_hf(),
            "text_config": text,
            **projector.to_hf(),
            "vision_feature_layer": vision.feature_layer,
            "vision_feature_select_strategy": "default",
            "image_token_id": facts.image_token_id,
            "image_seq_length": facts.num_image_tokens,
            "tie_word_embeddings": text["tie_word_embeddings"],
        }

    def adjusted(self, file: str, theirs: dict[str, Any], model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """With the recipe's number of tiles."""

        def tiles(found: dict[str, Any]) -> dict[str, Any]:
            same = found.get("max_patches", _MOST_TILES) == facts.max_tiles
            return found if same else {**found, "max_patches": facts.max_tiles}

        return with_sections(file, theirs, {"image": tiles})

    def files(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """Processor, and the image processor that cuts tiles.

        Raises:
            UserError: tiles without the whole image, which transformers' processor does not make.
        """
        vision = model.vision
        assert isinstance(vision, InternViTConfig)
        if facts.max_tiles > 1 and not facts.thumbnail:
            raise UserError("data.thumbnail=false: InternVL's processor in transformers adds the whole image to tiles")
        edge = vision.image_size
        images = {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": edge, "width": edge},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": facts.max_tiles,
            **common_settings(vision),
        }
        processor = {"processor_class": "InternVLProcessor", "image_seq_length": facts.num_image_tokens}
        return {"preprocessor_config.json": images, "processor_config.json": {**processor, "image_processor": images}}


def _require_length(folder: Path, vision: InternViTConfig, projector: ComponentConfig) -> None:
    """The number of an image's tokens that the processor writes is the number of features that the model makes."""
    assert isinstance(projector, ProjectorConfig)
    wanted = projector.num_tokens(vision.num_patches)
    for name in ("config.json", "processor_config.json"):
        file = folder / name
        stated = read_json(file).get("image_seq_length") if file.is_file() else None
        if stated not in (None, wanted):
            grid, factor = vision.image_size // vision.patch_size, 1 / projector.factor  # type: ignore[attr-defined]
            raise UserError(
                f"{file}: image_seq_length={stated}, but {grid} x {grid} patches (image_size={vision.image_size}, "
                f"patch_size={vision.patch_size}) and downsample_ratio={factor:g} make {wanted} tokens of an image: "
                f"image_seq_length must be {wanted}"
            )


def _ends(folder: Path) -> tuple[str, str]:
    """What stands before and after an image's tokens: the tokenizer's own names of them, else the published ones."""
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    named = {**settings, **(extra if isinstance(extra := settings.get("extra_special_tokens"), dict) else {})}
    return tuple(str(named.get(f"{key}_image_token", text)) for key, text in (("start", _BEGIN), ("end", _END)))  # type: ignore[return-value]
