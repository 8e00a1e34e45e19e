"""The projector of InternVL: neighbouring features side by side, norm, linear, GELU, linear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

from loongforge.components.hf_settings import HFSettings
from loongforge.components.products import Product
from loongforge.components.projector.mlp.config import MLP2xGELUConfig
from loongforge.config.errors import UserError
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    import torch

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class PixelShuffleMLPConfig(MLP2xGELUConfig):
    """Pixel shuffle, LayerNorm, linear, exact GELU, linear (transformers `InternVLMultiModalProjector`)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    any_size: ClassVar[bool] = True

    factor: int = 2
    """So many neighbours in each direction become one token (`downsample_ratio` 0.5)."""
    norm_eps: float = 1e-5
    """Epsilon of the norm."""

    def num_tokens(self, num_features: int) -> int:
        """A factor in each direction."""
        return num_features // self.factor**2

    def shape(self, seen: ImageShape) -> ImageShape:
        """A factor in each direction; what fills no square is left out."""
        frames, height, width = seen.grid
        grid = (frames, height // self.factor, width // self.factor)
        return replace(seen, tokens=grid[0] * grid[1] * grid[2], token_grid=grid)

    def tile_problems(self, tile_size: int, num_features: int) -> list[str]:
        """Features that form no square grid, or one that the factor does not divide."""
        edge = isqrt(num_features)
        if edge**2 != num_features:
            return [f"type={self.type} needs a square grid of features, not {num_features}"]
        if edge % self.factor:
            return [f"factor={self.factor} does not divide the grid of {edge} x {edge} features"]
        return []

    def stacked(self, input_size: int) -> int:
        """Width of neighbouring features side by side."""
        return input_size * self.factor**2

    def small_copy(self, *, divisor: int) -> PixelShuffleMLPConfig:
        """With a narrow inner width where it is not the LLM's."""
        return replace(self, factor=2, hidden_size=self.hidden_size and 16 * divisor, init_from=None)

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """Parameters that a rank holds: its part of the inner width, the norm and the last bias."""
        width = self.stacked(input_size)
        return 2 * width + super().params_on(tp, input_size=width, output_size=output_size)

    def flops(self, num_features: int, *, input_size: int, output_size: int) -> float:
        """Forward FLOPs of one image."""
        inner = self.inner_size(output_size)
        return 2.0 * self.num_tokens(num_features) * inner * (self.stacked(input_size) + output_size)

    def kept_per_image(self, num_features: int, tp: int, *, input_size: int, output_size: int) -> float:
        """Around the norm, and around the activation."""
        tokens, inner = self.num_tokens(num_features), self.inner_size(output_size)
        return tokens * (2 * self.stacked(input_size) + 2 * inner / tp)

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """The norm, and both maps of stacked features."""
        return [Product("rows", 0.0, "norm.weight"), *self._maps("rows", self.stacked(input_size), output_size)]

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.projector.mlp.module import PixelShuffleMLPProjector

        return PixelShuffleMLPProjector(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.projector.mlp.hf import pixel_shuffle_name_map

        return pixel_shuffle_name_map()

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> PixelShuffleMLPConfig:
        """From `config.json` of a whole InternVL."""
        settings = HFSettings(hf)
        settings.require("projector_hidden_act", "gelu")
        ratio = settings.get("downsample_ratio", 0.5)
        if ratio <= 0 or 1 / ratio != int(1 / ratio):
            raise UserError(f"config.json: downsample_ratio={ratio} is not covered; covered: 1 / a whole number")
        return cls(type="pixel_shuffle_mlp", factor=int(1 / ratio))

    def to_hf(self) -> dict[str, Any]:
        """What `config.json` of an InternVL says of its projector.

        Raises:
            UserError: transformers' has another inner width, norm or no choice of biases.
        """
        if self.hidden_size is not None or not self.bias or self.norm_eps != 1e-5:
            raise UserError(
                "InternVL's projector in transformers has the LLM's width inside, biases and norm_eps=1e-5 "
                f"(hidden_size={self.hidden_size}, bias={self.bias}, norm_eps={self.norm_eps})"
            )
        return {"projector_hidden_act": "gelu", "downsample_ratio": 1 / self.factor}

    def settings(self, *, whole: bool) -> dict[str, Any]:
        """Without the inner width, which shapes show."""
        return {"factor": self.factor, "bias": self.bias, "norm_eps": self.norm_eps}
