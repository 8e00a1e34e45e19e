"""Linear and two-layer MLP projectors (LLaVA and LLaVA-1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from loongforge.components.hf_settings import HFSettings
from loongforge.components.products import Product
from loongforge.components.projector.base import ProjectorConfig
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    import torch

    from loongforge.components.context import BuildContext
    from loongforge.components.hf import NameMap


@dataclass(kw_only=True)
class LinearConfig(ProjectorConfig):
    """One linear map (LLaVA, arXiv 2304.08485)."""

    bias: bool = True
    """Add a bias."""

    def small_copy(self, *, divisor: int) -> LinearConfig:
        """Its sizes are those of its neighbours."""
        return replace(self, init_from=None)

    def num_params(self, *, input_size: int, output_size: int) -> int:
        """Parameters of the map."""
        return output_size * (input_size + int(self.bias))

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """The map."""
        return [Product("features", 2.0 * input_size * output_size, "linear.weight")]

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's copy."""
        from loongforge.components.projector.mlp.module import LinearProjector

        return LinearProjector(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.projector.mlp.hf import linear_name_map

        return linear_name_map()


@dataclass(kw_only=True)
class MLP2xGELUConfig(ProjectorConfig):
    """Linear, exact GELU, linear (LLaVA-1.5, arXiv 2310.03744; transformers `LlavaMultiModalProjector`)."""

    hidden_size: int | None = None
    """Inner width; null: the LLM's width."""
    bias: bool = True
    """Add biases."""
    hf_model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def inner_size(self, output_size: int) -> int:
        """Width between the two maps."""
        return self.hidden_size or output_size

    def problems(self, tp: int, *, input_size: int, output_size: int) -> list[str]:
        """An inner width that cannot be divided over the tensor-parallel ranks."""
        inner = self.inner_size(output_size)
        return [f"hidden_size={inner} cannot be divided over parallel.tp={tp}"] if inner % tp else []

    def small_copy(self, *, divisor: int) -> MLP2xGELUConfig:
        """With a narrow inner width where it is not the LLM's."""
        return replace(self, hidden_size=self.hidden_size and 16 * divisor, init_from=None)

    def num_params(self, *, input_size: int, output_size: int) -> int:
        """Parameters of both maps."""
        return self.params_on(1, input_size=input_size, output_size=output_size)

    def params_on(self, tp: int, *, input_size: int, output_size: int) -> int:
        """Parameters that a rank holds: its part of the inner width, and the last bias."""
        inner, bias = self.inner_size(output_size) // tp, int(self.bias)
        return inner * (input_size + bias) + output_size * (inner + bias)

    def products(self, *, input_size: int, output_size: int) -> list[Product]:
        """Both maps."""
        return self._maps("features", input_size, output_size)

    def _maps(self, per: str, input_size: int, output_size: int) -> list[Product]:
        inner = self.inner_size(output_size)
        ends = {"linear_1": 2.0 * input_size * inner, "linear_2": 2.0 * inner * output_size}
        return [Product(per, flops, f"{name}.weight") for name, flops in ends.items()]

    def build(self, context: BuildContext, *, input_size: int, output_size: int) -> torch.nn.Module:
        """Makes this rank's shard."""
        from loongforge.components.projector.mlp.module import MLPProjector

        return MLPProjector(self, context, input_size=input_size, output_size=output_size)

    def name_map(self) -> NameMap:
        """Hugging Face names of the parameters."""
        from loongforge.components.projector.mlp.hf import mlp_name_map

        return mlp_name_map()

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> MLP2xGELUConfig:
        """From `config.json` of a whole LLaVA."""
        settings = HFSettings(hf)
        settings.require("projector_hidden_act", "gelu")
        return cls(type="mlp2x_gelu", bias=settings.get("multimodal_projector_bias", True))

    def to_hf(self) -> dict[str, Any]:
        """What `config.json` of a LLaVA says of its projector, whose inner width is the LLM's.

        Raises:
            UserError: it has another inner width.
        """
        if self.hidden_size is not None:
            raise UserError(
                f"hidden_size={self.hidden_size}: LLaVA's projector in transformers has the LLM's width inside"
            )
        return {"projector_hidden_act": "gelu", "multimodal_projector_bias": self.bias}

    def settings(self, *, whole: bool) -> dict[str, Any]:
        """Without the inner width, which shapes show."""
        return {"bias": self.bias}
