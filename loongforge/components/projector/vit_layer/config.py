"""The `vit` projector of DeepSpeed-VisualChat: one more ViT layer, a linear map, a norm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from loongforge.components.products import Product, layer_products
from loongforge.components.projector.base import ProjectorConfig

if TYPE_CHECKING:
    import torch

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class ViTLayerConfig(ProjectorConfig):
    """One CLIP encoder layer at the encoder's width, linear, LayerNorm (DeepSpeed-VisualChat, arXiv 2309.14327)."""

    num_heads: int | None = None
    """Attention heads; null: the encoder's width / 64."""
    mlp_hidden_size: int | None = None
    """Inner width of the feed-forward layer; null: four times the encoder's width."""
    activation: Literal["quick_gelu", "gelu_tanh", "gelu"] = "quick_gelu"
    """`gelu_tanh` is the tanh approximation."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the layer's norms."""
    norm_eps: float = 1e-12
    """Epsilon of the last norm."""

    def heads(self, input_size: int) -> int:
        """Attention heads at a width."""
        return self.num_heads or max(1, input_size // 64)

    def inner_size(self, input_size: int) -> int:
        """Inner width of the feed-forward layer."""
        return self.mlp_hidden_size or 4 * input_size

    def problems(self, tp: int, *, input_size: int, output_size: int) -> list[str]:
        """Widths that the heads or the ranks do not divide."""
        heads, inner, found = self.heads(input_size), self.inner_size(input_size), []
        if input_size % heads:
            found.append(f"num_heads={heads} does not divide the encoder's width {input_size}")
        if heads % tp:
            found.append(f"num_heads={heads} cannot be divided over parallel.tp={tp}")
        if inner % tp:
            found.append(f"mlp_hidden_size={inner} cannot be divided over parallel.tp={tp}")
        return found

    def small_copy(self, *, divisor: int) -> ViTLayerConfig:
        """With narrow heads."""
        return replace(self, num_heads=divisor, mlp_hidden_size=16 * divisor, init_std=0.08, init_from=None)

    def num_params(self, *, input_size: int, output_size: int) -> int:
        """Parameters of the layer, the map and the norm."""
        return self.params_on(1, input_size=input_size, output_size=output_size)

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """Parameters that a rank holds; norms, the map and biases after a sum are whole on every rank."""
        inner = self.inner_size(input_size)
        divided = 4 * input_size**2 + 3 * input_size + 2 * input_size * inner + inner
        return divided // tp + 6 * input_size + output_size * (input_size + 3)

    def flops(self, num_features: int, *, input_size: int, output_size: int) -> float:
        """Forward FLOPs of one image."""
        weights = 4 * input_size**2 + 2 * input_size * self.inner_size(input_size) + input_size * output_size
        return 2.0 * num_features * weights + 4.0 * num_features**2 * input_size

    def kept_per_image(self, num_features: int, tp: int, *, input_size: int, output_size: int) -> float:
        """As of a ViT's layer, and around the map and the norm."""
        layer = 4 * input_size + (4 * input_size + 2 * self.inner_size(input_size)) / tp
        return num_features * (layer + input_size + 2 * output_size)

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """Of the layer and the map."""
        inner = self.inner_size(input_size)
        layer = layer_products(
            "decoder.layers.0.",
            "features",
            qkv=6.0 * input_size**2,
            pairs="feature_pairs",
            attention=4.0 * input_size,
            proj=2.0 * input_size**2,
            mlp=[Product("features", 2.0 * input_size * inner, f"mlp.linear_fc{number}.weight") for number in (1, 2)],
        )
        return [*layer, Product("features", 2.0 * input_size * output_size, "linear.weight")]

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.projector.vit_layer.module import ViTLayerProjector

        return ViTLayerProjector(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Names of a CLIP encoder layer, `linear` and `norm`."""
        from loongforge.components.projector.vit_layer.hf import name_map

        return name_map(self)
