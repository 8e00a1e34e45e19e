"""Names of the vision encoders of Qwen2-VL and Qwen2.5-VL in transformers."""

from __future__ import annotations

import torch

from loongforge.components.hf import NameMap, Rule, Tensors, grouped_qkv, stacked
from loongforge.components.vision.qwen_vl.config import QwenViTConfig

PREFIXES = ("visual.", "model.visual.", "")


def name_map(config: QwenViTConfig) -> NameMap:
    """Rules of the encoder. The patch convolution `[H, 3, t, p, p]` is a matrix `[H, 3 t p p]` here."""
    shape = (3, config.temporal_patch_size, config.patch_size, config.patch_size)

    def to_convolution(weight: torch.Tensor) -> Tensors:
        return [weight.reshape(-1, *shape)]

    patch = Rule("patch_embedding", ("patch_embed.proj.weight",), lambda t: t[0].flatten(1), to_convolution)
    return NameMap([patch, *_layer_rules(config)], PREFIXES)


def _layer_rules(config: QwenViTConfig) -> list[Rule]:
    layer, theirs = "decoder.layers.{i}.", "blocks.{i}."
    rules = [_qkv(config, kind) for kind in ("weight", "bias")]
    pairs = {"self_attention.linear_proj": "attn.proj", "input_layernorm": "norm1", "pre_mlp_layernorm": "norm2"}
    if config.gated:
        gate_up = [f"{theirs}mlp.{name}_proj" for name in ("gate", "up")]
        kinds = ("weight", "bias")
        rules += [stacked(f"{layer}mlp.linear_fc1.{kind}", [f"{name}.{kind}" for name in gate_up]) for kind in kinds]
        pairs["mlp.linear_fc2"] = "mlp.down_proj"
    else:
        pairs |= {"mlp.linear_fc1": "mlp.fc1", "mlp.linear_fc2": "mlp.fc2"}
    for ours, name in pairs.items():
        rules += [Rule(f"{layer}{ours}.{kind}", (f"{theirs}{name}.{kind}",)) for kind in ("weight", "bias")]
    return rules


def _qkv(config: QwenViTConfig, kind: str) -> Rule:
    """Theirs is one tensor: all queries, all keys, all values; ours goes head by head."""
    head = config.hidden_size // config.num_heads
    heads = grouped_qkv("", ("", "", ""), groups=config.num_heads, per_group=1, head=head)

    def join(tensors: Tensors) -> torch.Tensor:
        return heads.join(list(tensors[0].chunk(3)))

    def split(tensor: torch.Tensor) -> Tensors:
        return [torch.cat(heads.split(tensor))]

    return Rule(
        f"decoder.layers.{{i}}.self_attention.linear_qkv.{kind}", (f"blocks.{{i}}.attn.qkv.{kind}",), join, split
    )
