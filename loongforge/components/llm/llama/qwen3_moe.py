"""Qwen3-MoE: Qwen3 with many experts in its feed-forward layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from typing_extensions import Self

from loongforge.components.hf_settings import HFSettings
from loongforge.components.llm.llama import sizes
from loongforge.components.llm.llama.families import Qwen3Config
from loongforge.components.llm.llama.hf_config import from_hf
from loongforge.components.llm.stages import stage_layers
from loongforge.components.transformer.router_spec import RouterSpec


@dataclass(kw_only=True)
class Qwen3MoeConfig(Qwen3Config):
    """Of each layer's experts a token takes a few (transformers `Qwen3MoeForCausalLM`)."""

    hf_model_types: ClassVar[tuple[str, ...]] = ("qwen3_moe",)
    hf_free: ClassVar[frozenset[str]] = Qwen3Config.hf_free | {"router_aux_loss_coef", "output_router_logits"}

    num_experts: int
    """Experts of a layer."""
    experts_per_token: int
    """Experts that a token takes, those with the highest router probabilities."""
    expert_hidden_size: int
    """Inner width of an expert; `mlp_hidden_size` is that of layers without experts."""
    norm_expert_weights: bool = True
    """The weights of a token's experts are divided by their sum."""
    dense_layers: list[int] = field(default_factory=list)
    """Layers, counted from 0, that have one feed-forward part in place of experts."""
    expert_layer_step: int = 1
    """Of so many layers the last has experts."""
    router_aux_loss_coef: float = 0.0
    """Weight of the loss that evens out the load of experts, over the tokens of a whole step; 0: none is added."""
    output_router_logits: bool = True
    """Add that loss. Transformers adds it only where its config says this, which published checkpoints do not."""

    def has_experts(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has experts."""
        return layer not in self.dense_layers and (layer + 1) % self.expert_layer_step == 0

    def feed_forward(self, layer: int) -> sizes.FeedForwardSizes:
        """Sizes of a layer's feed-forward part."""
        if not self.has_experts(layer):
            return super().feed_forward(layer)
        expert, router = 3 * self.hidden_size * self.expert_hidden_size, self.num_experts * self.hidden_size
        taken = self.experts_per_token
        return sizes.FeedForwardSizes(
            whole=router,
            experts=self.num_experts * expert,
            products=taken * expert + router,
            kept=taken * (3 * self.expert_hidden_size + 2 * self.hidden_size),
        )

    def feed_forward_parts(self, layer: int) -> list[tuple[str, int]]:
        """Names and widths of a layer's experts."""
        if not self.has_experts(layer):
            return super().feed_forward_parts(layer)
        return [(f"experts.{number}.", self.expert_hidden_size) for number in range(self.num_experts)]

    def expert_params_on(self, tp: int, pp: int, stage: int, ep: int) -> int:
        """Parameters of experts that a rank of a pipeline stage holds."""
        layers = stage_layers(self.num_layers, pp, stage)
        return sum(self.feed_forward(layer).experts for layer in layers) // (tp * ep)

    def expert_rows(self, layer: int) -> int:
        """How many rows a token sends to experts in a layer."""
        return self.experts_per_token if self.has_experts(layer) else 0

    @property
    def routers(self) -> RouterSpec:
        """What a step records of routers."""
        weight = self.router_aux_loss_coef if self.output_router_logits else 0.0
        return RouterSpec(self.num_layers, self.num_experts, self.experts_per_token, weight)

    def notes(self) -> list[str]:
        """That transformers' switch is off."""
        if self.router_aux_loss_coef == 0 or self.output_router_logits:
            return []
        weight = self.router_aux_loss_coef
        return [f"llm: router_aux_loss_coef={weight:g} is not added, as output_router_logits=false says"]

    def problems(self, tp: int, pp: int, ep: int = 1) -> list[str]:
        """Sizes that do not fit one another or the layout."""
        found = super().problems(tp, pp, 1)
        if self.num_experts % ep:
            found.append(f"num_experts={self.num_experts} cannot be divided over parallel.ep={ep}")
        if self.expert_hidden_size % tp:
            found.append(f"expert_hidden_size={self.expert_hidden_size} cannot be divided over parallel.tp={tp}")
        if not 1 <= self.experts_per_token <= self.num_experts:
            found.append(f"experts_per_token={self.experts_per_token}; allowed: 1 .. num_experts={self.num_experts}")
        if self.router_aux_loss_coef < 0:
            found.append(f"router_aux_loss_coef={self.router_aux_loss_coef} must be at least 0")
        if self.expert_layer_step < 1:
            found.append(f"expert_layer_step={self.expert_layer_step} must be at least 1")
        return found

    def small_copy(self, *, num_layers: int, divisor: int) -> Self:
        """The same kind of decoder with few small experts."""
        small = super().small_copy(num_layers=num_layers, divisor=divisor)
        number = 2 * divisor
        return replace(
            small,
            num_experts=number,
            experts_per_token=min(self.experts_per_token, number // 2),
            expert_hidden_size=8 * divisor,
            dense_layers=[layer for layer in self.dense_layers if layer < num_layers - 1],
            expert_layer_step=min(self.expert_layer_step, num_layers),
        )

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """From the `config.json` of Qwen3-MoE."""
        values = HFSettings(hf)
        return from_hf(
            cls,
            hf,
            num_experts=values.get("num_experts", hf.get("num_local_experts", 128)),
            experts_per_token=values.get("num_experts_per_tok", 8),
            expert_hidden_size=values.get("moe_intermediate_size", 768),
            norm_expert_weights=values.get("norm_topk_prob", False),
            dense_layers=list(values.get("mlp_only_layers", [])),
            expert_layer_step=values.get("decoder_sparse_step", 1),
            router_aux_loss_coef=float(values.get("router_aux_loss_coef", 0.001)),
            output_router_logits=values.get("output_router_logits", False),
        )

    def to_hf(self) -> dict[str, Any]:
        """With the settings of experts."""
        return {
            **super().to_hf(),
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.experts_per_token,
            "moe_intermediate_size": self.expert_hidden_size,
            "norm_topk_prob": self.norm_expert_weights,
            "mlp_only_layers": list(self.dense_layers),
            "decoder_sparse_step": self.expert_layer_step,
            "router_aux_loss_coef": self.router_aux_loss_coef,
            "output_router_logits": self.routers.loss_weight > 0,
        }

    @property
    def implementation(self) -> str:
        """Another one than of decoders without experts."""
        return self.type

    def settings(self, *, whole: bool) -> dict[str, Any]:
        """With the layers that have experts spelled out."""
        found = {
            **super().settings(whole=whole),
            "dense_layers": [self.has_experts(layer) for layer in range(self.num_layers)],
        }
        del found["expert_layer_step"]
        return found
