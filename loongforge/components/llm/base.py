"""What every language model's config tells the rest of the system. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loongforge.components.base import FamilyConfig
from loongforge.components.products import Product, whole
from loongforge.config.errors import UserError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from loongforge.components.context import BuildContext
    from loongforge.components.transformer.router_spec import RouterSpec


@dataclass(frozen=True, kw_only=True)
class ParameterSize:
    """Size and place of a parameter."""

    numbers: int = field(kw_only=False)
    """Over all shards."""
    divided: bool
    """Over tensor-parallel ranks."""
    layers: tuple[int, ...]
    """The layers in whose pipeline stages it is."""
    of_expert: bool = False
    """One of the expert-parallel ranks holds it."""


@dataclass(kw_only=True)
class LLMConfig(FamilyConfig):
    """A decoder from embeddings `[S, B, hidden_size]` to logits over `vocab_size` tokens."""

    vocab_size: int
    """Rows of the token embedding."""
    hidden_size: int
    """Width of the residual stream."""
    num_layers: int
    """Transformer layers."""
    max_seq_len: int
    """Longest sequence in tokens, image tokens included."""

    def problems(self, tp: int, pp: int, ep: int = 1) -> list[str]:
        """What makes this model impossible to build, found without building it."""
        return [] if ep == 1 else [f"parallel.ep={ep} divides experts, and type={self.type!r} has none; allowed: 1"]

    def small_copy(self, *, num_layers: int, divisor: int) -> Self:
        """The same architecture with few, narrow layers whose sizes `divisor` divides, to try a layout on."""
        raise UserError(f"type={self.type!r} does not say what a small copy of it is (`small_copy`)")

    def num_params(self) -> int:
        """Parameters of the whole model, over all shards."""
        raise NotImplementedError

    def params_on(self, tp: int, pp: int, stage: int, ep: int = 1) -> int:
        """Parameters that a rank of a pipeline stage holds; the default spreads them evenly."""
        return self.num_params() // (tp * pp)

    def parameter_sizes(self) -> dict[str, ParameterSize]:
        """Size of every parameter by global name; empty where a family does not say (a plan then counts a component of
        which some parameters train as if all did)."""
        return {}

    def adapter_sizes(self) -> dict[str, ParameterSize]:
        """Size of every parameter of the adapters that `lora` asks for, by global name; empty as above."""
        return {}

    def expert_params_on(self, tp: int, pp: int, stage: int, ep: int) -> int:
        """Those of `params_on` that belong to experts, which fewer ranks hold the same of."""
        return 0

    def expert_rows(self, layer: int) -> int:
        """How many rows of width `hidden_size` a token sends to experts in a layer; 0: the layer has none."""
        return 0

    @property
    def routers(self) -> RouterSpec | None:
        """What its module's `routing` records of a step; None: it has no experts."""
        return None

    def notes(self) -> list[str]:
        """What somebody who trains it should know of its settings."""
        return []

    def kept_per_token(self, tp: int, *, sequence_parallel: bool) -> float:
        """Numbers that a layer keeps of each token for its backward pass, on each rank."""
        return 18.0 * self.hidden_size / (tp if sequence_parallel else 1)

    @property
    def kv_width(self) -> int:
        """Numbers in the keys and values of a token in one layer, which context-parallel ranks exchange."""
        return 2 * self.hidden_size

    def flops(self, seq_len: int) -> float:
        """Forward FLOPs of one token in a sequence of `seq_len`, output layer included."""
        raise NotImplementedError

    def flops_with_images(self, seq_len: float, image_share: float) -> float:
        """Forward FLOPs of one token in a sequence of `seq_len`, of which a share is image tokens before the text."""
        return self.flops(seq_len)  # type: ignore[arg-type]

    def products(self) -> list[Product]:
        """Matrix products of a forward pass, to count FLOPs by; the default knows no attention and no labels."""
        return whole(self, "tokens", self.flops(1))

    def build(self, context: BuildContext) -> torch.nn.Module:
        """Makes this rank's shard of the module."""
        raise NotImplementedError
