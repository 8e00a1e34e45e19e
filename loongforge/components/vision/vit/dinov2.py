"""DINOv2, with and without registers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loongforge.components.vision.vit.config import LayerKind, ViTConfig

if TYPE_CHECKING:
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class Dinov2Config(ViTConfig):
    """DINOv2 (transformers `Dinov2Model`, `Dinov2WithRegistersModel`): class token, patch bias, layer scale.

    `image_size` is the size that its positions were trained for (518 in the published models): they are not
    interpolated to another one.
    """

    hf_model_types: ClassVar[tuple[str, ...]] = ("dinov2", "dinov2_with_registers")

    activation: Literal["quick_gelu", "gelu_tanh", "gelu"] = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    """Biases on q, k and v."""
    registers: int = 0
    """Learned tokens without a position (arXiv 2309.16588); 4 in `dinov2-with-registers`."""
    swiglu: bool = False
    """SwiGLU of inner width `mlp_hidden_size` in place of the MLP (DINOv2 giant)."""
    post_norm: bool = True
    """Norm after the last layer, as in `last_hidden_state`."""

    @property
    def layer_kind(self) -> LayerKind:
        """As the recipe says, with layer scale."""
        return LayerKind(qkv_bias=self.qkv_bias, layer_scale=True, gated=self.swiglu)

    @property
    def has_class_token(self) -> bool:
        """DINOv2 has one."""
        return True

    @property
    def num_registers(self) -> int:
        """As the recipe says."""
        return self.registers

    @property
    def class_token_shape(self) -> tuple[int, ...]:
        """A matrix of one row."""
        return (1, self.hidden_size)

    @property
    def has_post_norm(self) -> bool:
        """The norm belongs to the last layer's output, not to hidden states before it."""
        return self.post_norm and self.built_layers == self.num_layers

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.vision.vit.hf_names import dinov2_names

        return dinov2_names(self)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Dinov2Config:
        """From `config.json` of the tower."""
        from loongforge.components.vision.vit.hf_towers import dinov2_settings

        return cls(type="dinov2", **dinov2_settings(hf))

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of the tower alone."""
        from loongforge.components.vision.vit.hf_towers import dinov2_to_hf

        return dinov2_to_hf(self)
