"""Names of `InternVLVisionModel` and `Dinov2Model` in checkpoints of transformers."""

from __future__ import annotations

import torch

from loongforge.components.hf import NameMap, Rule, Tensors, grouped_qkv
from loongforge.components.vision.vit.config import ViTConfig
from loongforge.components.vision.vit.dinov2 import Dinov2Config
from loongforge.components.vision.vit.hf import above
from loongforge.components.vision.vit.internvit import InternViTConfig

_INSIDE = ("vision_tower.", "model.vision_tower.")
_LAYER, _THEIRS = "decoder.layers.{i}.", "encoder.layer.{i}."


def internvit_names(config: InternViTConfig) -> NameMap:
    """Rules of InternViT, alone or inside InternVL."""
    attention = f"{_THEIRS}attention."
    rules = [
        *_embeddings(config),
        *_qkv(config, [f"{attention}{name}_proj" for name in "qkv"]),
        *(Rule(f"{_LAYER}self_attention.{n}_layernorm.weight", (f"{attention}{n}_norm.weight",)) for n in "qk"),
        *_both(f"{_LAYER}self_attention.linear_proj", f"{attention}projection_layer"),
        *_both(f"{_LAYER}input_layernorm", f"{_THEIRS}layernorm_before"),
        *_both(f"{_LAYER}pre_mlp_layernorm", f"{_THEIRS}layernorm_after"),
        *_mlp(),
        Rule(f"{_LAYER}self_attn_bda.weight", (f"{_THEIRS}lambda_1",)),
        Rule(f"{_LAYER}mlp_bda.weight", (f"{_THEIRS}lambda_2",)),
    ]
    return NameMap(
        rules,
        ("", *_INSIDE),
        carried=_not_built(config),
        neutral=_neutral(config, config.post_norm),
        above=above(config),
    )


def dinov2_names(config: Dinov2Config) -> NameMap:
    """Rules of DINOv2, alone, under a head, or inside a LLaVA."""
    attention = f"{_THEIRS}attention."
    mlp = _both(f"{_LAYER}mlp.linear_fc1", f"{_THEIRS}mlp.weights_in")
    mlp += _both(f"{_LAYER}mlp.linear_fc2", f"{_THEIRS}mlp.weights_out")
    rules = [
        *_embeddings(config),
        Rule("registers", ("embeddings.register_tokens",), lambda t: t[0].squeeze(0), lambda t: [t[None]]),
        *_qkv(config, [f"{attention}attention.{name}" for name in ("query", "key", "value")]),
        *_both(f"{_LAYER}self_attention.linear_proj", f"{attention}output.dense"),
        *_both(f"{_LAYER}input_layernorm", f"{_THEIRS}norm1"),
        *_both(f"{_LAYER}pre_mlp_layernorm", f"{_THEIRS}norm2"),
        *(mlp if config.swiglu else _mlp()),
        Rule(f"{_LAYER}self_attn_bda.weight", (f"{_THEIRS}layer_scale1.lambda1",)),
        Rule(f"{_LAYER}mlp_bda.weight", (f"{_THEIRS}layer_scale2.lambda1",)),
    ]
    carried = [r"embeddings\.mask_token", *_not_built(config)]
    prefixes = ("", "dinov2.", "dinov2_with_registers.", *_INSIDE)
    neutral = _neutral(config, config.post_norm)
    return NameMap(rules, prefixes, carried=carried, neutral=neutral, above=above(config))


def _not_built(config: ViTConfig) -> list[str]:
    """What checkpoints hold and the features do not depend on: layers above them, and the last norm."""
    found = [rf"encoder\.layer\.{number}\..*" for number in above(config)]
    return found + ([] if config.has_post_norm else [r"layernorm\..*"])


def _neutral(config: ViTConfig, published: bool) -> dict[str, tuple[int, ...]]:
    """The last norm, where checkpoints have one and the features do not depend on it."""
    kinds = () if config.has_post_norm or not published else ("weight", "bias")
    return {f"layernorm.{kind}": (config.hidden_size,) for kind in kinds}


def _embeddings(config: ViTConfig) -> list[Rule]:
    """Outside of the layers. The patch convolution `[H, 3, p, p]` is a matrix `[H, 3 p p]` here."""
    p = config.patch_size

    def convolution(weight: torch.Tensor) -> Tensors:
        return [weight.reshape(-1, 3, p, p)]

    patch = "embeddings.patch_embeddings.projection"
    return [
        Rule("patch_embedding.weight", (f"{patch}.weight",), lambda t: t[0].flatten(1), convolution),
        Rule("patch_embedding.bias", (f"{patch}.bias",)),
        Rule("position_embedding", ("embeddings.position_embeddings",), lambda t: t[0].squeeze(0), lambda t: [t[None]]),
        Rule("class_token", ("embeddings.cls_token",), lambda t: t[0].squeeze(0), lambda t: [t[None]]),
        *_both("decoder.final_layernorm", "layernorm"),
    ]


def _qkv(config: ViTConfig, names: list[str]) -> list[Rule]:
    return [
        grouped_qkv(
            f"{_LAYER}self_attention.linear_qkv.{kind}",
            (f"{names[0]}.{kind}", f"{names[1]}.{kind}", f"{names[2]}.{kind}"),
            groups=config.num_heads,
            per_group=1,
            head=config.hidden_size // config.num_heads,
        )
        for kind in ("weight", "bias")
    ]


def _mlp() -> list[Rule]:
    return [rule for n in (1, 2) for rule in _both(f"{_LAYER}mlp.linear_fc{n}", f"{_THEIRS}mlp.fc{n}")]


def _both(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]
