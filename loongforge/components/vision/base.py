"""What every vision encoder's config tells the rest of the system. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from loongforge.components.base import FamilyConfig
from loongforge.components.products import Product, whole
from loongforge.config.errors import UserError
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from loongforge.components.context import BuildContext


@dataclass(kw_only=True)
class VisionConfig(FamilyConfig):
    """An encoder from pixels `[N, 3, image_size, image_size]` to features `[N, P, output_size]`."""

    any_size: ClassVar[bool] = False
    """Whether images keep their own size; see `AnySizeVisionConfig`."""

    image_size: int
    """Height and width of the processed image in pixels."""
    patch_size: int
    """Height and width of a patch in pixels."""
    image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Per channel, subtracted from pixels in [0, 1]."""
    image_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Per channel, divides what is left."""
    image_resize: Literal["crop", "stretch"] = "crop"
    """`crop`: scale the shorter edge, cut out the centre (CLIP); `stretch`: scale both edges (SigLIP)."""

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_image_tokens(self) -> int:
        """Feature vectors that one image gives to the projector (`P`)."""
        raise NotImplementedError

    @property
    def shape(self) -> ImageShape:
        """What the encoder makes of an image of its size; the LLM's tokens are the projector's to say."""
        edge = self.image_size // self.patch_size
        return ImageShape(1, self.num_patches, self.num_image_tokens, 0, (1, edge, edge))

    def example_shapes(self) -> list[ImageShape]:
        """What the encoder makes of images of different kinds, for trials."""
        return [self.shape]

    @property
    def pixel_row(self) -> tuple[int, ...]:
        """Shape of the pixels of an image; of a patch where images keep their size."""
        return 3, self.image_size, self.image_size

    @property
    def output_size(self) -> int:
        """Width of a feature vector."""
        raise NotImplementedError

    @property
    def built_layers(self) -> int:
        """Layers that the features depend on; each has costs that do not depend on its size."""
        return 1

    def problems(self, tp: int) -> list[str]:
        """What makes this encoder impossible to build, found without building it."""
        raise NotImplementedError

    def small_copy(self, *, divisor: int) -> Self:
        """The same architecture with few, narrow layers whose sizes `divisor` divides, to try a layout on."""
        raise UserError(f"type={self.type!r} does not say what a small copy of it is (`small_copy`)")

    def num_params(self) -> int:
        """Parameters of the whole encoder, over all shards."""
        raise NotImplementedError

    def params_on(self, tp: int) -> int:
        """Parameters that a rank holds; the default spreads them evenly."""
        return self.num_params() // tp

    def kept_per_image(self, tp: int) -> float:
        """Numbers that an image leaves for the backward pass, on each rank."""
        return 0.0

    def reduced_per_image(self) -> float:
        """Numbers that tensor-parallel ranks sum for an image in a forward pass."""
        return 0.0

    def flops(self) -> float:
        """Forward FLOPs of one image."""
        raise NotImplementedError

    def patch_flops(self) -> tuple[float, float]:
        """Forward FLOPs of an image of p patches: (a, b) of `a p + b p^2`; of one size only, all of it is a."""
        return self.flops() / self.num_patches, 0.0

    def products(self) -> list[Product]:
        """Matrix products of a forward pass, to count FLOPs by; the default is one of all."""
        return whole(self, "images", self.flops())

    def build(self, context: BuildContext) -> torch.nn.Module:
        """Makes this rank's shard of the module."""
        raise NotImplementedError


@dataclass(kw_only=True)
class AnySizeVisionConfig(VisionConfig):
    """An encoder of images that keep their size: patches `[P, pixels of a patch]` of all images, and their shapes, to
    features `[P, output_size]`, row by row of each image."""

    any_size: ClassVar[bool] = True

    image_size: int = 448
    """Edge of the square image that `loongforge plan` counts with; images are resized within the limits below."""
    merge_size: int = 2
    """The edges of images are whole numbers of so many patches."""
    temporal_patch_size: int = 2
    """Frames of a video in a patch; an image fills them with copies of itself."""
    min_pixels: int = 3136
    """Smaller images are enlarged to so many pixels."""
    max_pixels: int = 1003520
    """Larger images are reduced to so many pixels."""
    min_video_pixels: int = 100352
    """The same of a frame of a video."""
    max_video_pixels: int = 602112
    """The same of a frame of a video."""

    @property
    def positions_per_second(self) -> float | None:
        """Temporal positions of a second of video; None: each step in time is one."""
        return None

    @property
    def num_image_tokens(self) -> int:
        """Feature vectors of an image of `image_size`."""
        return self.num_patches

    def resized(self, width: int, height: int, *, video: bool = False) -> tuple[int, int]:
        """Width and height that an image, or a frame of a video, is resized to (transformers `smart_resize`).

        Raises:
            ValueError: an image 200 times as long as wide.
        """
        if max(width, height) > 200 * min(width, height):
            raise ValueError(f"an image of {width} x {height} pixels is more than 200 times as long as wide")
        factor = self.patch_size * self.merge_size
        least, most = self.min_pixels, self.max_pixels
        if video:
            least, most = self.min_video_pixels, self.max_video_pixels
        to_width, to_height = (round(edge / factor) * factor for edge in (width, height))
        if to_width * to_height > most:
            scale = math.sqrt(width * height / most)
            to_width, to_height = (max(factor, math.floor(e / scale / factor) * factor) for e in (width, height))
        elif to_width * to_height < least:
            scale = math.sqrt(least / (width * height))
            to_width, to_height = (math.ceil(e * scale / factor) * factor for e in (width, height))
        return to_width, to_height

    def shape_of(self, width: int, height: int, frames: int = 0, fps: float = 0.0) -> ImageShape:
        """What the encoder makes of an image of this size, or of so many frames of a video (0: it is an image).

        Raises:
            ValueError: as `resized`.
        """
        to_width, to_height = self.resized(width, height, video=frames > 0)
        steps, interval = max(1, -(-frames // self.temporal_patch_size)), 1.0
        if frames and fps and self.positions_per_second is not None:
            interval = self.positions_per_second * self.temporal_patch_size / fps
        grid = (steps, to_height // self.patch_size, to_width // self.patch_size)
        patches = math.prod(grid)
        return ImageShape(patches, patches, patches, 0, grid, interval=interval)

    def example_shapes(self) -> list[ImageShape]:
        """Small images, upright, square and lying."""
        edge = self.patch_size * self.merge_size
        return [self.shape_of(width * edge, height * edge) for width, height in ((2, 2), (1, 3), (4, 1), (1, 1))]

    @property
    def pixel_row(self) -> tuple[int, ...]:
        """Shape of the pixels of a patch."""
        return (3 * self.temporal_patch_size * self.patch_size**2,)
