"""Vision encoders of Qwen2-VL and Qwen2.5-VL: sizes, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from loongforge.components.products import Product, layer_products
from loongforge.components.vision.base import AnySizeVisionConfig

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class QwenViTConfig(AnySizeVisionConfig):
    """What both have in common: pre-norm layers without a last norm, each frame attending to itself."""

    hf_free: ClassVar[frozenset[str]] = frozenset(
        {"image_size", "min_pixels", "max_pixels", "min_video_pixels", "max_video_pixels"}
    )
    hf_whole: ClassVar[frozenset[str]] = frozenset({"image_mean", "image_std", "image_resize"})

    patch_size: int = 14
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Transformer layers."""
    num_heads: int
    """Attention heads."""
    mlp_hidden_size: int
    """Inner width of the feed-forward layers."""

    @property
    def normalization(self) -> str:
        """Kind of every norm."""
        return "LayerNorm"

    @property
    def gated(self) -> bool:
        """Whether feed-forward layers are SwiGLU; else they have a quick GELU."""
        return False

    def is_windowed(self, layer: int) -> bool:
        """Whether a layer (from 0) attends within windows only."""
        return False

    @property
    def window_tokens(self) -> int:
        """Edge of a window in groups of `merge_size` patches."""
        return 0

    @property
    def output_size(self) -> int:
        """Width of a feature vector."""
        return self.hidden_size

    @property
    def built_layers(self) -> int:
        """All of them."""
        return self.num_layers

    def problems(self, tp: int) -> list[str]:
        """Sizes that do not fit one another or the tensor-parallel size."""
        found = []
        if self.hidden_size % (4 * self.num_heads):
            found.append(f"hidden_size={self.hidden_size} is not a multiple of 4 x num_heads={self.num_heads}")
        for name in ("num_heads", "mlp_hidden_size"):
            if getattr(self, name) % tp:
                found.append(f"{name}={getattr(self, name)} cannot be divided over parallel.tp={tp}")
        if self.image_size % (self.patch_size * self.merge_size):
            edge = self.patch_size * self.merge_size
            nearest = max(1, round(self.image_size / edge)) * edge
            found.append(f"image_size={self.image_size} is not a multiple of {edge}; nearest: {nearest}")
        if not 0 < self.min_pixels <= self.max_pixels:
            found.append(f"min_pixels={self.min_pixels} must be positive and at most max_pixels={self.max_pixels}")
        return found

    def small_copy(self, *, divisor: int) -> Self:
        """The same kind of encoder with few narrow layers, on images of a few patches."""
        edge = self.patch_size * self.merge_size
        return replace(
            self,
            num_layers=2,
            num_heads=2 * divisor,
            hidden_size=32 * divisor,
            mlp_hidden_size=48 * divisor,
            image_size=2 * edge,
            min_pixels=edge**2,
            max_pixels=(4 * edge) ** 2,
            min_video_pixels=edge**2,
            max_video_pixels=(4 * edge) ** 2,
            init_std=0.08,
            init_from=None,
        )

    def _layer_params(self, tp: int) -> int:
        width, inner = self.hidden_size, self.mlp_hidden_size
        up = 2 if self.gated else 1
        divided = 4 * width**2 + 3 * width + (1 + up) * width * inner + up * inner
        norms = 2 * width * (1 if self.normalization == "RMSNorm" else 2)
        return divided // tp + 2 * width + norms

    def num_params(self) -> int:
        """Parameters of the encoder; the patch merger is a projector."""
        return self.params_on(1)

    def params_on(self, tp: int) -> int:
        """Parameters that a rank holds; patch embedding, norms and the biases after a sum are whole on every rank."""
        return self.num_layers * self._layer_params(tp) + self.hidden_size * self.pixel_row[0]

    def kept_per_image(self, tp: int) -> float:
        """Inputs and outputs of norms; q, k, v and attention, before and after rotation; sides of the activation."""
        inner = (3 if self.gated else 2) * self.mlp_hidden_size
        return self.num_layers * self.num_patches * (4 * self.hidden_size + (6 * self.hidden_size + inner) / tp)

    def reduced_per_image(self) -> float:
        """Two sums in each layer."""
        return 2.0 * self.num_layers * self.num_patches * self.hidden_size

    def flops(self) -> float:
        """Forward FLOPs of an image of `image_size`."""
        linear, quadratic = self.patch_flops()
        return linear * self.num_patches + quadratic * self.num_patches**2

    def patch_flops(self) -> tuple[float, float]:
        """Forward FLOPs of an image of p patches: (a, b) of `a p + b p^2`."""
        up = 2 if self.gated else 1
        layer = 2.0 * (4 * self.hidden_size**2 + (1 + up) * self.hidden_size * self.mlp_hidden_size)
        windowed = sum(map(self.is_windowed, range(self.num_layers)))
        in_windows = windowed * 4.0 * self.hidden_size * (self.window_tokens * self.merge_size) ** 2
        linear = self.num_layers * layer + in_windows + 2.0 * self.hidden_size * self.pixel_row[0]
        return linear, (self.num_layers - windowed) * 4.0 * self.hidden_size

    def products(self) -> list[Product]:
        """Of patch embedding and layers."""
        width, inner = self.hidden_size, self.mlp_hidden_size
        found = [Product("patches", 2.0 * width * self.pixel_row[0], "patch_embedding")]
        for number in range(self.num_layers):
            found += layer_products(
                f"decoder.layers.{number}.",
                "patches",
                qkv=6.0 * width**2,
                pairs="patch_window_pairs" if self.is_windowed(number) else "patch_pairs",
                attention=4.0 * width,
                proj=2.0 * width**2,
                mlp=[
                    Product("patches", 2.0 * width * inner * (2 if self.gated else 1), "mlp.linear_fc1.weight"),
                    Product("patches", 2.0 * width * inner, "mlp.linear_fc2.weight"),
                ],
            )
        return found

    def build(self, context: BuildContext) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.vision.qwen_vl.module import QwenVisionTransformer

        return QwenVisionTransformer(self, context)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.vision.qwen_vl.hf import name_map

        return name_map(self)


@dataclass(kw_only=True)
class Qwen2ViTConfig(QwenViTConfig):
    """The encoder of Qwen2-VL (transformers `Qwen2VisionTransformerPretrainedModel`)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl_vision",)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Qwen2ViTConfig:
        """From the vision section of `config.json`."""
        from loongforge.components.vision.qwen_vl.hf_config import qwen2_from_hf

        return qwen2_from_hf(cls, hf)

    def to_hf(self) -> dict[str, Any]:
        """The vision section of `config.json`, but for the LLM's width."""
        from loongforge.components.vision.qwen_vl.hf_config import qwen2_to_hf

        return qwen2_to_hf(self)


@dataclass(kw_only=True)
class Qwen25ViTConfig(QwenViTConfig):
    """The encoder of Qwen2.5-VL (transformers `Qwen2_5_VisionTransformerPretrainedModel`): RMSNorm, SwiGLU, windows."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl_vision",)

    window_size: int = 112
    """Edge of an attention window in pixels."""
    full_attention_layers: list[int] = field(default_factory=lambda: [7, 15, 23, 31])
    """Layers (from 0) that attend to whole frames."""
    tokens_per_second: int = 4
    """Temporal positions of a second of video."""

    @property
    def positions_per_second(self) -> float | None:
        """As the setting says."""
        return self.tokens_per_second

    @property
    def normalization(self) -> str:
        """Kind of every norm."""
        return "RMSNorm"

    @property
    def gated(self) -> bool:
        """Feed-forward layers are SwiGLU."""
        return True

    def is_windowed(self, layer: int) -> bool:
        """All others have windows."""
        return layer not in self.full_attention_layers

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Qwen25ViTConfig:
        """From the vision section of `config.json`."""
        from loongforge.components.vision.qwen_vl.hf_config import qwen25_from_hf

        return qwen25_from_hf(cls, hf)

    def to_hf(self) -> dict[str, Any]:
        """The vision section of `config.json`, but for the LLM's width."""
        from loongforge.components.vision.qwen_vl.hf_config import qwen25_to_hf

        return qwen25_to_hf(self)

    @property
    def window_tokens(self) -> int:
        """Edge of a window in groups of `merge_size` patches."""
        return self.window_size // self.merge_size // self.patch_size

    def problems(self, tp: int) -> list[str]:
        """As every encoder's, and windows without a patch."""
        found = super().problems(tp)
        if self.window_tokens < 1:
            found.append(f"window_size={self.window_size} is less than {self.merge_size} patches of {self.patch_size}")
        wrong = [layer for layer in self.full_attention_layers if not 0 <= layer < self.num_layers]
        if wrong:
            found.append(f"full_attention_layers={wrong} do not exist; allowed: 0 to {self.num_layers - 1}")
        return found

    def small_copy(self, *, divisor: int) -> Self:
        """One layer with windows, one without."""
        return replace(super().small_copy(divisor=divisor), full_attention_layers=[1])
