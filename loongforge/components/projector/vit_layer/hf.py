"""Names of the ViT-layer projector in folders of tensors: those of a CLIP encoder layer, `linear` and `norm`."""

from __future__ import annotations

import torch

from loongforge.components.hf import NameMap, Rule, Tensors, grouped_qkv
from loongforge.components.projector.vit_layer.config import ViTLayerConfig

PREFIXES = ("multi_modal_projector.", "model.multi_modal_projector.", "")
_KINDS = ("weight", "bias")
_LAYER, _THEIRS = "decoder.layers.0.", "layer."
_NAMES = {
    f"{_LAYER}input_layernorm": f"{_THEIRS}layer_norm1",
    f"{_LAYER}self_attention.linear_proj": f"{_THEIRS}self_attn.out_proj",
    f"{_LAYER}pre_mlp_layernorm": f"{_THEIRS}layer_norm2",
    f"{_LAYER}mlp.linear_fc1": f"{_THEIRS}mlp.fc1",
    f"{_LAYER}mlp.linear_fc2": f"{_THEIRS}mlp.fc2",
    "linear": "linear",
    "norm": "norm",
}


def name_map(config: ViTLayerConfig) -> NameMap:
    """Rules of the projector."""
    rules = [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for ours, theirs in _NAMES.items() for kind in _KINDS]
    return NameMap([*rules, *(_qkv(config, kind) for kind in _KINDS)], PREFIXES)


def _qkv(config: ViTLayerConfig, kind: str) -> Rule:
    """q, k and v; the width, which may decide the number of heads, is only known from the tensors."""
    ours = f"{_LAYER}self_attention.linear_qkv.{kind}"
    q, k, v = (f"{_THEIRS}self_attn.{part}_proj.{kind}" for part in "qkv")

    def rule(width: int) -> Rule:
        heads = config.heads(width)
        return grouped_qkv(ours, (q, k, v), groups=heads, per_group=1, head=width // heads)

    def join(tensors: Tensors) -> torch.Tensor:
        return rule(len(tensors[0])).join(tensors)

    def split(tensor: torch.Tensor) -> Tensors:
        return rule(len(tensor) // 3).split(tensor)

    return Rule(ours, (q, k, v), join, split)
