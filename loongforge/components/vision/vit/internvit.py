"""InternViT, the vision tower of InternVL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loongforge.components.vision.vit.config import LayerKind, ViTConfig

if TYPE_CHECKING:
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class InternViTConfig(ViTConfig):
    """The vision tower of InternVL (transformers `InternVLVisionModel`): class token, patch bias, layer scale."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("internvl_vision",)
    hf_whole: ClassVar[frozenset[str]] = ViTConfig.hf_whole - {"post_norm"}

    activation: Literal["quick_gelu", "gelu_tanh", "gelu"] = "gelu"
    norm_eps: float = 1e-6
    image_resize: Literal["crop", "stretch"] = "stretch"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Of the layers: `rms_norm` in InternViT-6B."""
    qkv_bias: bool = True
    """Biases on q, k and v."""
    qk_norm: bool = False
    """RMSNorm over all heads of q and of k together (InternViT-6B)."""
    post_norm: bool = False
    """LayerNorm after the last layer (`use_mean_pooling: false` in transformers)."""

    @property
    def layer_kind(self) -> LayerKind:
        """As the recipe says, with layer scale."""
        norm: Literal["LayerNorm", "RMSNorm"] = "RMSNorm" if self.norm == "rms_norm" else "LayerNorm"
        return LayerKind(normalization=norm, qkv_bias=self.qkv_bias, qk_norm=self.qk_norm, layer_scale=True)

    @property
    def has_class_token(self) -> bool:
        """InternViT has one."""
        return True

    @property
    def class_token_shape(self) -> tuple[int, ...]:
        """A matrix of one row."""
        return (1, self.hidden_size)

    @property
    def has_post_norm(self) -> bool:
        """The norm belongs to the last layer's output, not to hidden states before it."""
        return self.post_norm and self.built_layers == self.num_layers

    def problems(self, tp: int) -> list[str]:
        """Besides the sizes: a last norm of another kind than the others."""
        found = super().problems(tp)
        if self.post_norm and self.norm == "rms_norm":
            found.append("post_norm=true needs norm=layer_norm: no published model mixes kinds")
        return found

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.vision.vit.hf_names import internvit_names

        return internvit_names(self)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> InternViTConfig:
        """From `config.json` of the tower."""
        from loongforge.components.vision.vit.hf_towers import internvit_settings

        return cls(type="internvit", **internvit_settings(hf))

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of the tower alone."""
        from loongforge.components.vision.vit.hf_towers import internvit_to_hf

        return internvit_to_hf(self)
