"""megatron-core layer specs and configs that need no TransformerEngine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules, get_transformer_layer_offset

from loongforge.components.context import BuildContext
from loongforge.components.transformer.attention import TorchAttention, TorchSelfAttention
from loongforge.components.transformer.layer import Block, Layer
from loongforge.components.transformer.layer_scale import ScaledAdd
from loongforge.components.transformer.linear import ColumnLinear, RowLinear, UnbiasedColumnLinear
from loongforge.components.transformer.mlp import FeedForward
from loongforge.components.transformer.width_norm import WidthNorm
from loongforge.kernels import ops


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, computed by the op."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last axis."""
        return ops.rms_norm(x, self._parameters["weight"], self.eps)  # type: ignore[arg-type]


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, computed by the op."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises the last axis."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class TorchNorm:
    """Makes an RMSNorm or LayerNorm, as `config.normalization` says.

    Norms act on each token alone. Under sequence parallelism each rank sees a part of the tokens; the flag on the
    parameters makes megatron-core sum their gradients over tensor-parallel ranks.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        """The norm over the last axis."""
        kind = RMSNorm if config.normalization == "RMSNorm" else LayerNorm
        norm = kind(hidden_size, eps=eps, dtype=config.params_dtype)
        for param in norm.parameters():
            param.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": ops.quick_gelu,
    "gelu_tanh": ops.gelu_tanh,
    "gelu": ops.gelu,
    "silu": torch.nn.functional.silu,
}


def transformer_config(context: BuildContext, **sizes: Any) -> TransformerConfig:
    """A `TransformerConfig` for the component's layout; weights are drawn later (`components.init`)."""
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
        tensor_model_parallel_size=context.tp,
        pipeline_model_parallel_size=context.pp,
        context_parallel_size=context.groups.cp.size(),
        pipeline_dtype=context.dtype,
        sequence_parallel=context.sequence_parallel and context.tp > 1,
        params_dtype=context.dtype,
        bf16=context.dtype == torch.bfloat16,
        use_cpu_initialization=True,
        perform_initialization=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        calculate_per_token_loss=True,
        **(recompute if context.recompute else {}),
        **sizes,
    )


def linear_config(context: BuildContext, width: int) -> TransformerConfig:
    """For linear layers outside of a block: a head per rank satisfies the checks of megatron-core."""
    return transformer_config(context, num_layers=1, hidden_size=width, num_attention_heads=context.tp, kv_channels=1)


def _layer_spec(
    mask: AttnMaskType,
    head_norm: type,
    linear_qkv: type[ColumnLinear],
    scaled: ModuleSpec | None,
    feed_forward: type,
    attention_type: type[TorchSelfAttention],
    core_type: type[TorchAttention],
) -> ModuleSpec:
    attention = SelfAttentionSubmodules(
        linear_qkv=linear_qkv,
        core_attention=core_type,
        linear_proj=RowLinear,
        q_layernorm=head_norm,
        k_layernorm=head_norm,
    )
    return ModuleSpec(
        module=Layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=TorchNorm,
            self_attention=ModuleSpec(module=attention_type, params={"attn_mask_type": mask}, submodules=attention),
            self_attn_bda=scaled or get_bias_dropout_add,
            pre_mlp_layernorm=TorchNorm,
            mlp=feed_forward,
            mlp_bda=scaled or get_bias_dropout_add,
        ),
    )


def transformer_block(
    config: TransformerConfig,
    context: BuildContext,
    *,
    causal: bool,
    qk_norm: bool | Literal["width"] = False,
    qkv_bias: bool = True,
    layer_scale: bool = False,
    final_norm: bool = True,
    attention_type: type[TorchSelfAttention] = TorchSelfAttention,
    core_type: type[TorchAttention] = TorchAttention,
    feed_forward: Callable[[int], type] | None = None,
) -> TransformerBlock:
    """This rank's layers.

    Args:
        config: From `transformer_config`.
        context: The component's place.
        causal: Attend to earlier positions only.
        qk_norm: Normalise each head's q and k; `width`: all heads together, by an RMSNorm.
        qkv_bias: False: no bias on q, k and v, whatever the other linear layers have.
        layer_scale: Multiply what attention and feed-forward layer add by learned factors.
        final_norm: End the last stage with a norm.
        attention_type: The attention of a layer.
        core_type: The part of it that has no weights.
        feed_forward: The class of a layer's feed-forward part, by the layer's number from 0; None: `FeedForward`.
    """
    mask, rank = AttnMaskType.causal if causal else AttnMaskType.no_mask, context.groups.pp.rank()
    norms: dict[bool | str, type] = {True: TorchNorm, False: IdentityOp, "width": WidthNorm.over(context.groups.tp)}
    linear_qkv = ColumnLinear if qkv_bias else UnbiasedColumnLinear
    scaled = ModuleSpec(module=ScaledAdd, params={"config": config}) if layer_scale else None
    dense = FeedForward.over(context.groups.tp)
    first = get_transformer_layer_offset(config, pp_rank=rank)
    layers = range(first, first + get_num_layers_to_build(config, pp_rank=rank))

    def spec(layer: int) -> ModuleSpec:
        own = feed_forward(layer) if feed_forward else dense
        return _layer_spec(mask, norms[qk_norm], linear_qkv, scaled, own, attention_type, core_type)

    specs = [spec(layer) for layer in layers]
    return Block(
        config,
        TransformerBlockSubmodules(layer_specs=specs, layer_norm=TorchNorm if final_norm else None),
        post_layer_norm=final_norm,
        pre_process=context.first_stage,
        post_process=context.last_stage,
        pg_collection=context.groups,
    )
