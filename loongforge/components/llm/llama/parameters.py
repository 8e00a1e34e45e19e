"""Names and sizes of a decoder's parameters, for plans of recipes that train some of them. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loongforge.components.llm.base import ParameterSize
from loongforge.components.trainable import is_adapted

if TYPE_CHECKING:
    from loongforge.components.llm.llama.config import LlamaConfig


def parameter_sizes(config: LlamaConfig) -> dict[str, ParameterSize]:
    """By global name; empty for layers with experts."""
    if any(config.feed_forward(layer).experts for layer in range(config.num_layers)):
        return {}
    table, last = config.vocab_size * config.hidden_size, config.num_layers - 1
    ends = (0, last) if config.tie_embeddings else (0,)
    found = {"embedding.word_embeddings.weight": ParameterSize(table, divided=True, layers=ends)}
    for number in range(config.num_layers):
        for name, (size, divided) in _layer(config).items():
            found[f"decoder.layers.{number}.{name}"] = ParameterSize(size, divided=divided, layers=(number,))
    found["decoder.final_layernorm.weight"] = ParameterSize(config.hidden_size, divided=False, layers=(last,))
    if not config.tie_embeddings:
        found["output_layer.weight"] = ParameterSize(table, divided=True, layers=(last,))
    return found


def _layer(config: LlamaConfig) -> dict[str, tuple[int, bool]]:
    """(numbers, divided over tensor-parallel ranks)."""
    width, inner = config.hidden_size, config.mlp_hidden_size
    query, kv = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    found = {
        "input_layernorm.weight": (width, False),
        "self_attention.linear_qkv.weight": (width * (query + 2 * kv), True),
        "self_attention.linear_proj.weight": (query * width, True),
        "pre_mlp_layernorm.weight": (width, False),
        "mlp.linear_fc1.weight": (2 * width * inner, True),
        "mlp.linear_fc2.weight": (width * inner, True),
    }
    if config.qkv_bias:
        found["self_attention.linear_qkv.bias"] = (query + 2 * kv, True)
    if config.qk_norm:
        found |= {f"self_attention.{part}_layernorm.weight": (config.head_size, False) for part in "qk"}
    return found


def adapter_sizes(config: LlamaConfig) -> dict[str, ParameterSize]:
    """Of the adapters that `lora` asks for, by global name."""
    found: dict[str, ParameterSize] = {}
    if config.lora is None:
        return found
    rank, targets = config.lora.rank, config.lora.targets
    for number in range(config.num_layers):
        for name, (theirs, width, out, column) in _linears(config, number).items():
            parts = sum(is_adapted(f"layers.{number}.{layer}", targets) for layer in theirs)
            if parts:
                for part, numbers, divided in (("a", parts * rank * width, not column), ("b", out * rank, column)):
                    found[f"decoder.layers.{number}.{name}.lora.{part}"] = ParameterSize(
                        numbers, divided=divided, layers=(number,), of_expert=".experts." in name
                    )
    return found


def _linears(config: LlamaConfig, layer: int) -> dict[str, tuple[list[str], int, int, bool]]:
    """(their layers, width of the input, of the output, whether the output is what ranks divide)."""
    width = config.hidden_size
    query, kv = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    attention, mlp = "self_attn.{}_proj", "mlp.{}{}_proj"
    found = {
        "self_attention.linear_qkv": ([attention.format(x) for x in "qkv"], width, query + 2 * kv, True),
        "self_attention.linear_proj": ([attention.format("o")], query, width, False),
    }
    for prefix, inner in config.feed_forward_parts(layer):
        found[f"mlp.{prefix}linear_fc1"] = ([mlp.format(prefix, x) for x in ("gate", "up")], width, 2 * inner, True)
        found[f"mlp.{prefix}linear_fc2"] = ([mlp.format(prefix, "down")], inner, width, False)
    return found
