"""Names of the perceivers in folders of tensors: those of `IdeficsPerceiverResampler`; transformers has no class for
the one-layer perceiver, whose tensors are called after Qwen-VL's, with q, k and v apart."""

from __future__ import annotations

from loongforge.components.hf import NameMap, Rule

PREFIXES = ("multi_modal_projector.", "model.multi_modal_projector.", "model.perceiver_resampler.", "")


def perceiver_names() -> NameMap:
    """Rules of the one-layer perceiver."""
    rules = [
        Rule("queries", ("query",)),
        Rule("features.weight", ("kv_proj.weight",)),
        *_both("query_norm", "ln_q"),
        *_both("feature_norm", "ln_kv"),
        *(rule for part in ("query", "key", "value") for rule in _both(f"attention.{part}", f"attn.{part[0]}_proj")),
        *_both("attention.output", "attn.out_proj"),
        *_both("post_norm", "ln_post"),
        *_both("output", "proj"),
    ]
    return NameMap(rules, PREFIXES)


def resampler_names() -> NameMap:
    """Rules of the resampler; `output` is the map behind it."""
    ours, attention, mlp = "layers.{i}.", "blocks.{i}.0.", "blocks.{i}.1."
    weights = {f"attention.{part}": f"{attention}{part[0]}_proj" for part in ("query", "key", "value")}
    weights |= {"attention.output": f"{attention}output_proj", "linear_1": f"{mlp}fc", "linear_2": f"{mlp}c_proj"}
    rules = [
        Rule("queries", ("latents",)),
        *_both(f"{ours}feature_norm", f"{attention}context_layer_norm"),
        *_both(f"{ours}query_norm", f"{attention}latents_layer_norm"),
        *_both(f"{ours}mlp_norm", f"{mlp}ln"),
        *(Rule(f"{ours}{mine}.weight", (f"{theirs}.weight",)) for mine, theirs in weights.items()),
        *_both("norm", "layer_norm"),
        *_both("output", "output"),
    ]
    return NameMap(rules, PREFIXES)


def _both(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]
