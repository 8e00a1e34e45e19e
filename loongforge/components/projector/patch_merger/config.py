"""The patch merger of Qwen2-VL and Qwen2.5-VL: sizes, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loongforge.components.products import Product
from loongforge.components.projector.base import ProjectorConfig
from loongforge.parallel.images import ImageShape

if TYPE_CHECKING:
    import torch

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class PatchMergerConfig(ProjectorConfig):
    """Norm of each feature, then neighbours side by side through linear, exact GELU, linear (arXiv 2409.12191)."""

    any_size: ClassVar[bool] = True
    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")

    merge_size: int = 2
    """So many rows and columns of features become one LLM token."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """`layer_norm` in Qwen2-VL, `rms_norm` in Qwen2.5-VL."""
    norm_eps: float = 1e-6
    """Epsilon of the norm."""

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> PatchMergerConfig:
        """From `config.json` of a whole Qwen2-VL or Qwen2.5-VL."""
        norm: Literal["layer_norm", "rms_norm"] = "layer_norm" if hf.get("model_type") == "qwen2_vl" else "rms_norm"
        return cls(type="patch_merger", norm=norm, merge_size=hf["vision_config"].get("spatial_merge_size", 2))

    def to_hf(self) -> dict[str, Any]:
        """Nothing: all of it follows from the model type and the vision section."""
        return {}

    def num_tokens(self, num_features: int) -> int:
        """LLM tokens of a square image of so many features."""
        return (int(num_features**0.5) // self.merge_size) ** 2

    def shape(self, seen: ImageShape) -> ImageShape:
        """A token for each square of features."""
        frames, height, width = seen.grid
        grid = (frames, height // self.merge_size, width // self.merge_size)
        return replace(seen, tokens=grid[0] * grid[1] * grid[2], token_grid=grid)

    def merged_size(self, input_size: int) -> int:
        """Width of neighbours side by side, and between the two maps."""
        return input_size * self.merge_size**2

    def problems(self, tp: int, *, input_size: int, output_size: int) -> list[str]:
        """An inner width that cannot be divided over the tensor-parallel ranks."""
        inner = self.merged_size(input_size)
        return [f"the inner width {inner} cannot be divided over parallel.tp={tp}"] if inner % tp else []

    def small_copy(self, *, divisor: int) -> PatchMergerConfig:
        """Its sizes are those of its neighbours."""
        return replace(self, init_from=None)

    def num_params(self, *, input_size: int, output_size: int) -> int:
        """Parameters of norm and maps."""
        return self.params_on(1, input_size=input_size, output_size=output_size)

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """Parameters that a rank holds: its part of the inner width, the norm, and the last bias."""
        whole = self.merged_size(input_size)
        inner = whole // tp
        norm = input_size * (1 if self.norm == "rms_norm" else 2)
        return norm + inner * (whole + 1) + output_size * (inner + 1)

    def flops(self, num_features: int, *, input_size: int, output_size: int) -> float:
        """Forward FLOPs of one image with so many features."""
        whole = self.merged_size(input_size)
        return 2.0 * whole * (whole + output_size) * num_features / self.merge_size**2

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """The norm, and both maps of merged features."""
        whole = self.merged_size(input_size)
        first, second = (f"linear_{number}.weight" for number in (1, 2))
        return [
            Product("rows", 0.0, "norm.weight"),
            Product("rows", 2.0 * whole**2, first),
            Product("rows", 2.0 * whole * output_size, second),
        ]

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.projector.patch_merger.module import PatchMerger

        return PatchMerger(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.projector.patch_merger.hf import name_map

        return name_map()
