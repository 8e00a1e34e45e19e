"""Transformer layers that cost little beside their products where gradients are off: generation runs them per token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_layer import TransformerLayer

from loongforge.components.transformer.sequence import SequenceView


class Layer(TransformerLayer):
    """megatron-core's layer; without gradients the same sums without its cases (recomputation, offloading, fusion)."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        rotary_pos_emb: torch.Tensor | Sequence[torch.Tensor] | None = None,
        packed_seq_params: SequenceView | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[S, B, H]` -> `[S, B, H]`, and None; arguments as for `TorchSelfAttention`."""
        if torch.is_grad_enabled():
            places = {"rotary_pos_emb": rotary_pos_emb, "packed_seq_params": packed_seq_params}
            options["padding_mask"] = _real(packed_seq_params)
            return super().forward(hidden_states, *args, **places, **options)
        norm, attention, add, norm_2, mlp, add_2 = self._parts
        added = attention(norm(hidden_states), None, rotary_pos_emb, packed_seq_params)
        hidden_states = _sum(add, added, hidden_states)
        return _sum(add_2, mlp(norm_2(hidden_states), padding_mask=_real(packed_seq_params)), hidden_states), None

    @property
    def _parts(self) -> tuple[Any, ...]:
        """What a forward pass calls, looked up once."""
        if "parts" not in self.__dict__:
            modules = self._modules
            names = ("input_layernorm", "self_attention", "pre_mlp_layernorm", "mlp")
            norm, attention, norm_2, mlp = (modules[name].forward for name in names)
            self.__dict__["parts"] = (norm, attention, self.self_attn_bda, norm_2, mlp, self.mlp_bda)
        return self.__dict__["parts"]


class Block(TransformerBlock):
    """megatron-core's stack of layers; without gradients they are called directly."""

    def forward(
        self,
        hidden_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        *args: Any,
        rotary_pos_emb: torch.Tensor | None = None,
        packed_seq_params: SequenceView | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """`[S, B, H]`, or None where the previous stage's output is the input, -> `[S, B, H]`."""
        if torch.is_grad_enabled():
            places = {"rotary_pos_emb": rotary_pos_emb, "packed_seq_params": packed_seq_params}
            return super().forward(self._reached(hidden_states), attention_mask, *args, **places, **options)
        hidden: Any = hidden_states if self.pre_process else self.input_tensor
        rotary = None if rotary_pos_emb is None else rotary_pos_emb.unbind()
        for layer in self.layers:
            hidden, _ = layer.forward(hidden, rotary_pos_emb=rotary, packed_seq_params=packed_seq_params)
        return hidden if self.final_layernorm is None else self.final_layernorm.forward(hidden)

    def _reached(self, hidden: torch.Tensor | None) -> torch.Tensor | None:
        """The input of layers that are computed again in the backward pass: megatron-core's checkpoints give parameters
        gradients only where their input has one, which behind frozen parts it has not."""
        if hidden is None or hidden.requires_grad or self.config.recompute_granularity is None or not self.training:
            return hidden
        return hidden.detach().requires_grad_(any(param.requires_grad for param in self.parameters()))


def _real(view: Any) -> torch.Tensor | None:
    """Which tokens are no padding, for feed-forward parts that ask; None: all, or a ViT's patches."""
    return view.real if isinstance(view, SequenceView) else None


def _sum(bda: Any, added: tuple[torch.Tensor, torch.Tensor | None], residual: torch.Tensor) -> torch.Tensor:
    """The residual stream with what a part adds to it; a module says itself how (layer scale)."""
    if isinstance(bda, torch.nn.Module):
        return bda(False, False)(added, residual, 0.0)
    x, bias = added
    return residual + (x if bias is None else x + bias)
