"""What every vision encoder's config tells the rest of the system. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from loongforge.components.base import FamilyConfig
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from loongforge.components.context import BuildContext


@dataclass(kw_only=True)
class VisionConfig(FamilyConfig):
    """An encoder from pixels `[N, 3, image_size, image_size]` to features `[N, P, output_size]`."""

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

    def build(self, context: BuildContext) -> torch.nn.Module:
        """Makes this rank's shard of the module."""
        raise NotImplementedError
