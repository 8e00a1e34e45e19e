"""Names of `CLIPVisionModel` and `SiglipVisionModel` in transformers."""

from __future__ import annotations

from loongforge.components.hf import NameMap, Rule, Tensors, grouped_qkv
from loongforge.components.vision.vit.config import ViTConfig

# Alone (older and newer spelling); inside LLaVA on the hub, as transformers 5 saves it, and in memory.
PREFIXES = (
    "vision_model.",
    "",
    "vision_tower.vision_model.",
    "vision_tower.",
    "model.vision_tower.vision_model.",
    "model.vision_tower.",
)

ALONE = (r"head\..*", r"visual_projection\.weight")


def name_map(config: ViTConfig) -> NameMap:
    """Rules of the encoder. The patch convolution `[H, 3, p, p]` is a matrix `[H, 3 p p]` here."""
    p = config.patch_size

    def to_convolution(weight: object) -> Tensors:
        return [weight.reshape(-1, 3, p, p)]  # type: ignore[attr-defined]

    patch = Rule(
        "patch_embedding.weight", ("embeddings.patch_embedding.weight",), lambda t: t[0].flatten(1), to_convolution
    )
    rules = [
        patch,
        Rule("patch_embedding.bias", ("embeddings.patch_embedding.bias",)),
        Rule("position_embedding", ("embeddings.position_embedding.weight",)),
        Rule("class_token", ("embeddings.class_embedding",)),
        *_both("pre_norm", "pre_layrnorm"),  # the published spelling
        *_both("decoder.final_layernorm", "post_layernorm"),
        *_layer_rules(config),
    ]
    return NameMap(
        rules, PREFIXES, carried=_not_built(config), alone=ALONE, neutral=_neutral(config), above=above(config)
    )


def _not_built(config: ViTConfig) -> list[str]:
    """What published checkpoints hold and the features do not depend on: layers above, last norm, pooling head."""
    patterns = [r"embeddings\.position_ids", *(rf"encoder\.layers\.{number}\..*" for number in above(config))]
    return patterns + ([] if config.has_post_norm else [r"post_layernorm\..*"])


def above(config: ViTConfig) -> range:
    """Layers above the features."""
    return range(config.built_layers, config.num_layers)


def head_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of SigLIP's pooling head, by bare name."""
    width, inner = config.hidden_size, config.mlp_hidden_size
    maps: dict[str, tuple[int, ...]] = {
        "attention.out_proj": (width, width),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    found = {f"head.{name}.weight": shape for name, shape in maps.items()}
    found |= {f"head.{name}.bias": shape[:1] for name, shape in maps.items()}
    found |= {f"head.layernorm.{kind}": (width,) for kind in ("weight", "bias")}
    stacked = {"head.attention.in_proj_weight": (3 * width, width), "head.attention.in_proj_bias": (3 * width,)}
    return {"head.probe": (1, 1, width), **stacked, **found}


def _neutral(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    shape = (config.hidden_size,)
    return {} if config.has_post_norm else {f"post_layernorm.{kind}": shape for kind in ("weight", "bias")}


def _both(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def _layer_rules(config: ViTConfig) -> list[Rule]:
    layer, theirs = "decoder.layers.{i}.", "encoder.layers.{i}."
    head = config.hidden_size // config.num_heads
    names = [theirs + f"self_attn.{name}_proj" for name in "qkv"]
    qkv = [
        grouped_qkv(
            f"{layer}self_attention.linear_qkv.{kind}",
            (f"{names[0]}.{kind}", f"{names[1]}.{kind}", f"{names[2]}.{kind}"),
            groups=config.num_heads,
            per_group=1,
            head=head,
        )
        for kind in ("weight", "bias")
    ]
    return [
        *qkv,
        *_both(f"{layer}input_layernorm", f"{theirs}layer_norm1"),
        *_both(f"{layer}self_attention.linear_proj", f"{theirs}self_attn.out_proj"),
        *_both(f"{layer}pre_mlp_layernorm", f"{theirs}layer_norm2"),
        *_both(f"{layer}mlp.linear_fc1", f"{theirs}mlp.fc1"),
        *_both(f"{layer}mlp.linear_fc2", f"{theirs}mlp.fc2"),
    ]
