"""Vision transformers on a fixed patch grid: sizes, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loongforge.components.products import Product, layer_products
from loongforge.components.vision.base import VisionConfig

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What distinguishes the layers of one ViT from those of another; the defaults are CLIP's."""

    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    qkv_bias: bool = True
    """Biases on q, k and v."""
    qk_norm: bool = False
    """RMSNorm over the whole width of q and of k, all heads together."""
    layer_scale: bool = False
    """A learned factor for each channel of what attention and MLP add."""
    gated: bool = False
    """SwiGLU in place of an MLP with an activation."""

    def whole_params(self, width: int) -> int:
        """Parameters of a layer that are whole on every tensor-parallel rank."""
        norms = 2 * width * (1 if self.normalization == "RMSNorm" else 2)
        return norms + 2 * width + (2 * width if self.layer_scale else 0)

    def divided_params(self, width: int, inner: int) -> int:
        """Parameters of a layer that tensor-parallel ranks divide."""
        columns = 2 * inner if self.gated else inner
        found = 4 * width**2 + width * inner + columns * (width + 1)
        return found + (3 * width if self.qkv_bias else 0) + (2 * width if self.qk_norm else 0)


@dataclass(kw_only=True)
class ViTConfig(VisionConfig):
    """A pre-norm vision transformer with learned positions on a fixed patch grid."""

    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Layers of the published model; those above `feature_layer` are not built."""
    num_heads: int
    """Attention heads."""
    mlp_hidden_size: int
    """Inner width of the feed-forward layers."""
    activation: Literal["quick_gelu", "gelu_tanh", "gelu"]
    """`gelu_tanh` is the tanh approximation."""
    norm_eps: float
    """Epsilon of the norms."""
    feature_layer: int = -1
    """Which hidden state the features are, as in transformers: -2 is the input of the last layer, -1 its output."""
    drop_remainder: bool = False
    """Leave out pixels at the right and bottom that fill no whole patch (SigLIP-so400m: 384 = 27 x 14 + 6)."""
    hf_free: ClassVar[frozenset[str]] = frozenset({"drop_remainder"})
    hf_whole: ClassVar[frozenset[str]] = frozenset(
        {"feature_layer", "post_norm", "image_mean", "image_std", "image_resize"}
    )

    @property
    def layer_kind(self) -> LayerKind:
        """What its layers are made of."""
        return LayerKind()

    @property
    def has_class_token(self) -> bool:
        """Whether a learned token stands before the patches; it is dropped from the features."""
        return False

    @property
    def class_token_shape(self) -> tuple[int, ...]:
        """A vector in some checkpoints, a matrix of one row in others, which is subject to weight decay."""
        return (self.hidden_size,)

    @property
    def has_patch_bias(self) -> bool:
        """Whether the patch embedding has a bias."""
        return True

    @property
    def has_pre_norm(self) -> bool:
        """Whether a norm stands before the layers."""
        return False

    @property
    def has_post_norm(self) -> bool:
        """Whether the features are normalised after the last layer."""
        return False

    @property
    def num_registers(self) -> int:
        """Learned tokens without a position between class token and patches; dropped from the features."""
        return 0

    @property
    def built_layers(self) -> int:
        """Layers that the features depend on."""
        return self.num_layers + 1 + self.feature_layer if self.feature_layer < 0 else self.feature_layer

    @property
    def num_positions(self) -> int:
        """Tokens that have a learned position."""
        return self.num_patches + int(self.has_class_token)

    @property
    def num_tokens(self) -> int:
        """Tokens inside the encoder."""
        return self.num_positions + self.num_registers

    @property
    def num_image_tokens(self) -> int:
        """Feature vectors of one image."""
        return self.num_patches

    @property
    def output_size(self) -> int:
        """Width of a feature vector."""
        return self.hidden_size

    def problems(self, tp: int) -> list[str]:
        """Sizes that do not fit one another or the tensor-parallel size."""
        found = []
        if self.image_size % self.patch_size and not self.drop_remainder:
            found.append(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}; "
                f"nearest: {self.image_size // self.patch_size * self.patch_size or self.patch_size}, "
                "or drop_remainder=true as in SigLIP-so400m"
            )
        if self.hidden_size % self.num_heads:
            found.append(f"hidden_size={self.hidden_size} is not a multiple of num_heads={self.num_heads}")
        if self.num_heads % tp:
            found.append(f"num_heads={self.num_heads} cannot be divided over parallel.tp={tp}")
        if self.mlp_hidden_size % tp:
            found.append(f"mlp_hidden_size={self.mlp_hidden_size} cannot be divided over parallel.tp={tp}")
        if not 1 <= self.built_layers <= self.num_layers:
            found.append(
                f"feature_layer={self.feature_layer} does not exist in a model of num_layers={self.num_layers}; "
                f"allowed: {-self.num_layers} to -1, or 1 to {self.num_layers}"
            )
        for name, value in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if len(value) != 3:
                found.append(f"{name} needs 3 numbers, one per colour, not {len(value)}")
        if any(value <= 0 for value in self.image_std):
            found.append(f"image_std={list(self.image_std)} must be positive")
        return found

    def small_copy(self, *, divisor: int) -> Self:
        """The same kind of encoder on images of 2 x 2 patches, with heads of width 16."""
        layers = max(2, 1 - self.feature_layer)
        heads = 2 * divisor
        return replace(
            self,
            num_layers=layers,
            feature_layer=min(self.feature_layer, layers),
            num_heads=heads,
            hidden_size=16 * heads,
            mlp_hidden_size=32 * heads,
            image_size=2 * self.patch_size,
            init_std=0.08,
            init_from=None,
        )

    def num_params(self) -> int:
        """Parameters of the layers that are built."""
        return self.params_on(1)

    def params_on(self, tp: int) -> int:
        """Parameters that a rank holds; embeddings, norms and the biases after a sum are whole on every rank."""
        kind, width = self.layer_kind, self.hidden_size
        layer = kind.divided_params(width, self.mlp_hidden_size) // tp + kind.whole_params(width)
        return self.built_layers * layer + self._other_params()

    def _other_params(self) -> int:
        """Outside of the layers."""
        vectors = self.num_positions + self.num_registers + int(self.has_class_token) + int(self.has_patch_bias)
        norms = int(self.has_pre_norm) + int(self.has_post_norm)
        return self.hidden_size * (3 * self.patch_size**2 + vectors + 2 * norms)

    def kept_per_image(self, tp: int) -> float:
        """Inputs and outputs of norms; q, k, v and attention; both sides of the activation."""
        inner = self.mlp_hidden_size * (3 if self.layer_kind.gated else 2)
        layer = 4 * self.hidden_size + (4 * self.hidden_size + inner) / tp
        return self.built_layers * self.num_tokens * layer

    def reduced_per_image(self) -> float:
        """Two sums in each layer."""
        return 2.0 * self.built_layers * self.num_tokens * self.hidden_size

    def flops(self) -> float:
        """Forward FLOPs of one image: matrix products of the layers, attention and patch embedding."""
        mlp = (3 if self.layer_kind.gated else 2) * self.hidden_size * self.mlp_hidden_size
        layer = 2.0 * (4 * self.hidden_size**2 + mlp) * self.num_tokens + 4.0 * self.num_tokens**2 * self.hidden_size
        return self.built_layers * layer + 2.0 * self.num_patches * self.hidden_size * 3 * self.patch_size**2

    def products(self) -> list[Product]:
        """Of patch embedding and layers."""
        width, tokens = self.hidden_size, self.num_tokens
        up = (2 if self.layer_kind.gated else 1) * self.mlp_hidden_size
        found = [
            Product("images", 2.0 * self.num_patches * width * 3 * self.patch_size**2, "patch_embedding.weight"),
            *(Product("images", 0.0, name) for name in ("class_token", "position_embedding", "registers")),
            Product("images", 0.0, "pre_norm.weight"),
        ]
        for number in range(self.built_layers):
            found += layer_products(
                f"decoder.layers.{number}.",
                "images",
                qkv=6.0 * tokens * width**2,
                pairs="images",
                attention=4.0 * tokens**2 * width,
                proj=2.0 * tokens * width**2,
                mlp=[
                    Product("images", 2.0 * tokens * width * up, "mlp.linear_fc1.weight"),
                    Product("images", 2.0 * tokens * width * self.mlp_hidden_size, "mlp.linear_fc2.weight"),
                ],
            )
        return found

    def build(self, context: BuildContext) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.vision.vit.module import VisionTransformer

        return VisionTransformer(self, context)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.vision.vit.hf import name_map

        return name_map(self)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """From `config.json` of a vision tower, or of a CLIP or SigLIP with both towers."""
        from loongforge.components.vision.vit.hf_config import from_hf

        return from_hf(cls, hf)

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of the vision tower alone."""
        from loongforge.components.vision.vit.hf_config import to_hf

        return to_hf(self)

    def built_only(self) -> Self:
        """Without the layers above the features."""
        return replace(self, num_layers=self.built_layers, feature_layer=-1)


@dataclass(kw_only=True)
class ClipViTConfig(ViTConfig):
    """The vision tower of CLIP (transformers `CLIPVisionModel`) as LLaVA uses it: no post-norm, class token dropped."""

    activation: Literal["quick_gelu", "gelu_tanh", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5
    feature_layer: int = -2
    hf_model_types: ClassVar[tuple[str, ...]] = ("clip_vision_model", "clip")

    @property
    def has_class_token(self) -> bool:
        """CLIP has one."""
        return True

    @property
    def has_patch_bias(self) -> bool:
        """CLIP has none."""
        return False

    @property
    def has_pre_norm(self) -> bool:
        """CLIP has one."""
        return True


@dataclass(kw_only=True)
class SiglipViTConfig(ViTConfig):
    """The vision tower of SigLIP (transformers `SiglipVisionModel`): no class token, a patch bias, a last norm."""

    activation: Literal["quick_gelu", "gelu_tanh", "gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6
    image_resize: Literal["crop", "stretch"] = "stretch"
    hf_model_types: ClassVar[tuple[str, ...]] = ("siglip_vision_model", "siglip")

    post_norm: bool = True
    """Norm after the last layer, as in `last_hidden_state`; false: `hidden_states[-1]`, which LLaVA takes."""

    @property
    def has_post_norm(self) -> bool:
        """The norm belongs to the last layer's output, not to hidden states before it."""
        return self.post_norm and self.built_layers == self.num_layers
