"""Names of the patch merger inside the vision encoders of Qwen2-VL and Qwen2.5-VL in transformers."""

from __future__ import annotations

from loongforge.components.hf import NameMap, Rule

PREFIXES = ("visual.merger.", "model.visual.merger.", "merger.", "")


def name_map() -> NameMap:
    """Rules of the merger."""
    pairs = {"norm": "ln_q", "linear_1": "mlp.0", "linear_2": "mlp.2"}
    kinds = ("weight", "bias")
    return NameMap(
        [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for ours, theirs in pairs.items() for kind in kinds], PREFIXES
    )
