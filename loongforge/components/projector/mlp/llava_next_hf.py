"""Names of LLaVA-NeXT's projector in transformers; the newline stands beside it."""

from __future__ import annotations

from loongforge.components.hf import NameMap, Rule
from loongforge.components.projector.mlp.hf import PREFIXES, mlp_name_map


def name_map() -> NameMap:
    """Rules of the projector."""
    newline = Rule("newline", ("image_newline",), prefixes=("", "model."))
    return NameMap([*mlp_name_map().rules, newline], PREFIXES)
