"""The decoders of Qwen2-VL and Qwen2.5-VL: Qwen2's, with positions on three axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from loongforge.components.llm.llama.families import Qwen2Config
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(kw_only=True)
class Qwen2VLTextConfig(Qwen2Config):
    """Qwen2 with multimodal rotary positions (transformers `Qwen2VLTextModel`, arXiv 2409.12191)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl_text",)

    mrope_section: list[int] | None = field(default_factory=lambda: [16, 24, 24])
    """Rotary frequencies that turn with the temporal, vertical and horizontal position in an image; together half a
    head."""

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """From the text section of `config.json`, in the spelling of transformers 4 or 5."""
        rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
        section = rope.pop("mrope_section", [16, 24, 24])
        for key in ("type", "rope_type"):
            if rope.get(key) == "mrope":
                rope[key] = "default"
        theta = rope.pop("rope_theta", hf.get("rope_theta", 1e6))
        eps = hf.get("rms_norm_eps", 1e-5)
        plain = {**hf, "model_type": "qwen2", "rope_scaling": None, "rms_norm_eps": eps}
        found = Qwen2Config.from_hf({**plain, "rope_parameters": {"rope_theta": theta, **rope}})
        values = {part.name: getattr(found, part.name) for part in fields(found)}
        return cls(**{**values, "type": cls.hf_model_types[0], "mrope_section": list(section)})

    def to_hf(self) -> dict[str, Any]:
        """The text section of `config.json`.

        Raises:
            UserError: heads whose width does not follow from the others, which these decoders cannot have.
        """
        if self.head_size * self.num_heads != self.hidden_size:
            raise UserError(f"head_dim={self.head_size}: heads of {self.type} are hidden_size / num_heads wide")
        found = super().to_hf()
        del found["architectures"], found["head_dim"]
        rope = {**found["rope_parameters"], "mrope_section": list(self.mrope_section or ())}
        return {**found, "model_type": self.hf_model_types[0], "rope_parameters": rope}


@dataclass(kw_only=True)
class Qwen25VLTextConfig(Qwen2VLTextConfig):
    """The same in Qwen2.5-VL (transformers `Qwen2_5_VLTextModel`, arXiv 2502.13923)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl_text",)
