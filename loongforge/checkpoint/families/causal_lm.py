"""Language models alone (`AutoModelForCausalLM`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loongforge.checkpoint.families.base import ExportFacts, Family
from loongforge.components.base import FamilyConfig
from loongforge.components.registry import lookup, names
from loongforge.config.schema import ModelConfig


class CausalLM(Family):
    """The whole config is the language model's."""

    name = "language model"

    @property
    def model_types(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of all registered language models that transformers has alone, not as a part of a VLM only."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ALONE

        types = [lookup("llm", name) for name in names("llm")]
        covered = (found for cls in types if issubclass(cls, FamilyConfig) for found in cls.hf_model_types)
        return tuple(found for found in covered if found in ALONE)

    def sections(self, hf: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """One component."""
        return {"llm": hf}

    def obstacle(self, model: ModelConfig) -> str | None:
        """It sees no images."""
        return None if model.vision is None else "the model has a vision encoder"

    def to_hf(self, model: ModelConfig, facts: ExportFacts) -> dict[str, Any]:
        """The language model's own."""
        assert isinstance(model.llm, FamilyConfig)
        return model.llm.to_hf()
