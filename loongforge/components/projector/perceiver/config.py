"""Projectors that give every image the same number of tokens: learned queries attend to its features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING, ClassVar

from loongforge.components.products import Product
from loongforge.components.projector.base import ProjectorConfig

if TYPE_CHECKING:
    import torch

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class PerceiverConfig(ProjectorConfig):
    """One cross-attention with positions on a grid, as in Qwen-VL (arXiv 2308.12966) and DeepSpeed-VisualChat.

    Features -> linear, LayerNorm -> keys and values; queries -> LayerNorm; fixed 2-D sine-cosine positions on queries
    and keys; attention at the LLM's width -> LayerNorm -> linear.
    """

    any_size: ClassVar[bool] = True

    num_queries: int = 256
    """Tokens of an image; a square number."""
    num_heads: int | None = None
    """Attention heads; null: the LLM's width / 128."""
    norm_eps: float = 1e-6
    """Epsilon of the norms."""

    def heads(self, output_size: int) -> int:
        """Attention heads at a width."""
        return self.num_heads or max(1, output_size // 128)

    def num_tokens(self, num_features: int) -> int:
        """As many as there are queries."""
        return self.num_queries

    def tile_problems(self, tile_size: int, num_features: int) -> list[str]:
        """Queries, or features, that form no square grid."""
        found = []
        if isqrt(self.num_queries) ** 2 != self.num_queries:
            found.append(f"num_queries={self.num_queries} is no square number; nearest: {_square(self.num_queries)}")
        if isqrt(num_features) ** 2 != num_features:
            found.append(f"type={self.type} needs a square grid of features, not {num_features}")
        return found

    def problems(self, tp: int, *, input_size: int, output_size: int) -> list[str]:
        """Widths that the heads, or the positions, do not divide."""
        heads, found = self.heads(output_size), []
        if output_size % heads:
            found.append(f"num_heads={heads} does not divide the LLM's width {output_size}")
        if heads % tp:
            found.append(f"num_heads={heads} cannot be divided over parallel.tp={tp}")
        if output_size % 4:
            found.append(f"type={self.type} needs an LLM whose width is a multiple of 4, not {output_size}")
        return found

    def small_copy(self, *, divisor: int) -> PerceiverConfig:
        """With 2 x 2 queries."""
        return replace(self, num_queries=4, num_heads=divisor, init_std=0.08, init_from=None)

    def num_params(self, *, input_size: int, output_size: int) -> int:
        """Queries, three norms, and the linear maps."""
        return self.params_on(1, input_size=input_size, output_size=output_size)

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """Parameters that a rank holds; only the attention is divided."""
        width = output_size
        whole = self.num_queries * width + input_size * width + width**2 + 8 * width  # three norms, two biases
        return whole + (4 * width**2 + 3 * width) // tp

    def flops(self, num_features: int, *, input_size: int, output_size: int) -> float:
        """Forward FLOPs of one image: maps of features, maps of queries, attention."""
        of_features = num_features * output_size * (input_size + 2 * output_size)
        of_queries = self.num_queries * 3 * output_size**2
        return 2.0 * (of_features + of_queries) + 4.0 * self.num_queries * num_features * output_size

    def kept_per_image(self, num_features: int, tp: int, *, input_size: int, output_size: int) -> float:
        """Features, around the norm, with positions; keys and values; four times the queries."""
        kept = input_size + 3 * output_size + 2 * output_size / tp
        return num_features * kept + self.num_queries * (3 * output_size + 2 * output_size / tp)

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """Maps of features and of queries, attention between them."""
        square, per_pair = 2.0 * output_size**2, 4.0 * self.num_queries * output_size
        return [
            Product("features", 2.0 * input_size * output_size, "features.weight"),
            Product("features", 0.0, "feature_norm.weight"),
            Product("rows", 0.0, "queries"),
            Product("rows", square, "attention.query.weight"),
            Product("features", square, "attention.key.weight"),
            Product("features", square, "attention.value.weight"),
            Product("features", per_pair),
            Product("rows", square, "attention.output.weight"),
            Product("rows", square, "output.weight"),
        ]

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.projector.perceiver.module import Perceiver

        return Perceiver(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Names of Qwen-VL's resampler."""
        from loongforge.components.projector.perceiver.hf import perceiver_names

        return perceiver_names()


@dataclass(kw_only=True)
class ResamplerConfig(ProjectorConfig):
    """Several layers of cross-attention and MLP, as in Flamingo (arXiv 2204.14198; transformers
    `IdeficsPerceiverResampler`), then one linear map to the LLM's width.

    In each layer the queries attend to the features and to themselves, at the encoder's width.
    """

    num_queries: int = 64
    """Tokens of an image."""
    depth: int = 6
    """Layers."""
    num_heads: int = 16
    """Attention heads."""
    head_dim: int = 96
    """Width of a head."""
    mlp_ratio: int = 4
    """Inner width of the MLPs over the encoder's width."""
    norm_eps: float = 1e-5
    """Epsilon of the norms."""

    @property
    def built_layers(self) -> int:
        """As the recipe says."""
        return self.depth

    def num_tokens(self, num_features: int) -> int:
        """As many as there are queries."""
        return self.num_queries

    def problems(self, tp: int, *, input_size: int, output_size: int) -> list[str]:
        """Sizes that cannot be divided."""
        sizes = {"num_heads": self.num_heads, "mlp_ratio * the encoder's width": self.mlp_ratio * input_size}
        found = [f"{key}={size} cannot be divided over parallel.tp={tp}" for key, size in sizes.items() if size % tp]
        return found + ([f"depth={self.depth} must be at least 1"] if self.depth < 1 else [])

    def small_copy(self, *, divisor: int) -> ResamplerConfig:
        """With few queries and two layers."""
        small = replace(self, num_queries=4, depth=2, num_heads=divisor, head_dim=8, mlp_ratio=2)
        return replace(small, init_std=0.08, init_from=None)

    def num_params(self, *, input_size: int, output_size: int) -> int:
        """Queries, layers, last norm and the map to the LLM's width."""
        return self.params_on(1, input_size=input_size, output_size=output_size)

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """Parameters that a rank holds; norms, queries and the last map are whole on every rank."""
        layer = self._layer_weights(input_size) // tp + 6 * input_size
        last = 2 * input_size + output_size * (input_size + 1)
        return self.num_queries * input_size + self.depth * layer + last

    def _layer_weights(self, width: int) -> int:
        return 4 * width * self.num_heads * self.head_dim + 2 * self.mlp_ratio * width**2

    def flops(self, num_features: int, *, input_size: int, output_size: int) -> float:
        """Forward FLOPs of one image."""
        inner, queries, seen = self.num_heads * self.head_dim, self.num_queries, num_features + self.num_queries
        layer = 2.0 * input_size * inner * (2 * queries + 2 * seen) + 4.0 * queries * seen * inner
        layer += 4.0 * queries * self.mlp_ratio * input_size**2
        return self.depth * layer + 2.0 * queries * input_size * output_size

    def kept_per_image(self, num_features: int, tp: int, *, input_size: int, output_size: int) -> float:
        """In each layer: the normed features with the queries, keys and values; around the MLP."""
        seen, inner = num_features + self.num_queries, self.num_heads * self.head_dim
        layer = (num_features + 2 * seen) * input_size + 2 * seen * inner / tp
        layer += self.num_queries * (5 * input_size + (2 * inner + 2 * self.mlp_ratio * input_size) / tp)
        return self.depth * layer + self.num_queries * 2 * input_size

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """Of each layer: maps of queries, and of features with queries, attention between them, and the MLP."""
        inner = self.num_heads * self.head_dim
        narrow, wide = 2.0 * input_size * inner, 2.0 * self.mlp_ratio * input_size**2
        found = [Product("rows", 0.0, "queries")]
        for number in range(self.depth):
            attention = f"layers.{number}.attention."
            found.append(Product("rows", narrow, f"{attention}query.weight"))
            for name in ("key", "value"):
                found += [Product(per, narrow, f"{attention}{name}.weight") for per in ("features", "rows")]
            found += [Product(per, 4.0 * self.num_queries * inner) for per in ("features", "rows")]
            found.append(Product("rows", narrow, f"{attention}output.weight"))
            found += [Product("rows", wide, f"layers.{number}.linear_{part}.weight") for part in (1, 2)]
        return [*found, Product("rows", 2.0 * input_size * output_size, "output.weight")]

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.projector.perceiver.resampler import Resampler

        return Resampler(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Names of Idefics' resampler."""
        from loongforge.components.projector.perceiver.hf import resampler_names

        return resampler_names()


def _square(number: int) -> int:
    return round(number**0.5) ** 2 or 1
