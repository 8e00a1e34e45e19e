"""What every projector's config tells the rest of the system. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from loongforge.components.base import FamilyConfig
from loongforge.components.products import Product, whole
from loongforge.config.errors import UserError
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from loongforge.components.context import BuildContext


@dataclass(kw_only=True)
class ProjectorConfig(FamilyConfig):
    """A map from vision features `[N, P, input_size]` to LLM embeddings `[N, P', output_size]`."""

    any_size: ClassVar[bool] = False
    """Whether the module also maps features `[features, input_size]` and shapes of images that differ in size to rows;
    where it does not, it is given one image at a time."""

    cuts_images: ClassVar[bool] = False
    """Whether an image is cut into tiles of the encoder's size whose features it joins (`LlavaNextProjectorConfig`)."""

    def num_tokens(self, num_features: int) -> int:
        """LLM tokens of an image that has so many feature vectors (`P'` from `P`)."""
        return num_features

    @property
    def built_layers(self) -> int:
        """Layers; each has costs that do not depend on its size."""
        return 1

    def shape(self, seen: ImageShape) -> ImageShape:
        """What an image becomes, from what the encoder makes of it."""
        tokens = self.num_tokens(seen.features)
        return replace(seen, tokens=tokens, token_grid=seen.grid if tokens == seen.features else None)

    def example_shapes(self, seen: Sequence[ImageShape], tile_size: int) -> list[ImageShape]:
        """What images become, for trials.

        Args:
            seen: What the encoder makes of images of different kinds.
            tile_size: Edge of the images of an encoder that takes one size.
        """
        return [self.shape(image) for image in seen]

    @property
    def typical_tiles(self) -> int:
        """Images that the encoder sees of an image, for `loongforge plan`."""
        return 1

    def tile_problems(self, tile_size: int, num_features: int) -> list[str]:
        """What does not fit an encoder of images of one size and so many features."""
        return []

    def fit_tiles(self, before: int, after: int) -> None:
        """Takes note that the edge of the encoder's images changes."""

    def problems(self, tp: int, *, input_size: int, output_size: int) -> list[str]:
        """What makes this projector impossible to build, found without building it."""
        return []

    def small_copy(self, *, divisor: int) -> Self:
        """The same architecture with few, narrow layers whose sizes `divisor` divides, to try a layout on."""
        raise UserError(f"type={self.type!r} does not say what a small copy of it is (`small_copy`)")

    def num_params(self, *, input_size: int, output_size: int) -> int:
        """Parameters of the whole projector, over all shards."""
        raise NotImplementedError

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """Parameters that a rank holds; the default holds them whole."""
        return self.num_params(input_size=input_size, output_size=output_size)

    def flops(self, num_features: int, *, input_size: int, output_size: int) -> float:
        """Forward FLOPs of one image with so many feature vectors."""
        weights = self.num_params(input_size=input_size, output_size=output_size)
        return 2.0 * weights * num_features

    def kept_per_image(self, num_features: int, tp: int, *, input_size: int, output_size: int) -> float:
        """Numbers that an image leaves for the backward pass, on each rank; the default is that of two linear maps."""
        return num_features * input_size + 2.0 * self.num_tokens(num_features) * output_size

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """Matrix products of a forward pass, to count FLOPs by; the default is one of all, with the features of an
        image of the encoder's size."""
        return whole(self, "features", self.flops(1, input_size=input_size, output_size=output_size))

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard of the module."""
        raise NotImplementedError
