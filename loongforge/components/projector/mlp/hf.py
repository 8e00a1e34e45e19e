"""Names of `LlavaMultiModalProjector` and `InternVLMultiModalProjector` in transformers; a linear projector is that of
LLaVA v1, `mm_projector`."""

from __future__ import annotations

from loongforge.components.hf import NameMap, Rule

PREFIXES = ("model.multi_modal_projector.", "multi_modal_projector.", "")


def mlp_name_map() -> NameMap:
    """Rules of the two-layer projector."""
    names = [f"linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")]
    return NameMap([Rule(name, (name,)) for name in names], PREFIXES)


def pixel_shuffle_name_map() -> NameMap:
    """Rules of InternVL's projector."""
    norm = [Rule(f"norm.{kind}", (f"layer_norm.{kind}",)) for kind in ("weight", "bias")]
    return NameMap([*norm, *mlp_name_map().rules], PREFIXES)


def linear_name_map() -> NameMap:
    """Rules of the linear projector."""
    rules = [Rule(f"linear.{kind}", (f"linear.{kind}",)) for kind in ("weight", "bias")]
    return NameMap(rules, ("model.mm_projector.", "mm_projector.", *PREFIXES))
