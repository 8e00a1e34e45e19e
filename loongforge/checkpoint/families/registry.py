"""Which families of whole models there are."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from loongforge.checkpoint.families.base import Family
from loongforge.config.errors import UserError
from loongforge.config.schema import ModelConfig

FAMILIES = (
    "loongforge.checkpoint.families.llava:Llava",
    "loongforge.checkpoint.families.internvl:InternVL",
    "loongforge.checkpoint.families.llava_next:LlavaNext",
    "loongforge.checkpoint.families.qwen_vl:Qwen2VL",
    "loongforge.checkpoint.families.qwen_vl:Qwen25VL",
    "loongforge.checkpoint.families.causal_lm:CausalLM",
)


def families() -> Iterator[Family]:
    """Every family, in the order in which they are asked."""
    for address in FAMILIES:
        module, _, name = address.partition(":")
        yield getattr(importlib.import_module(module), name)()


def family_of(hf: Mapping[str, Any], where: object) -> Family:
    """The family of a `config.json`.

    Args:
        hf: As parsed.
        where: Its folder, for the message.

    Raises:
        UserError: none covers its `model_type`.
    """
    kind = hf.get("model_type")
    known = list(families())
    for family in known:
        if kind in family.model_types:
            return family
    covered = ", ".join(name for family in known for name in family.model_types)
    raise UserError(f"{where}/config.json: model_type={kind!r} is of no supported family; supported: {covered}")


def family_for(model: ModelConfig) -> Family:
    """The family that a recipe's components can be exported as.

    Raises:
        UserError: none; with every family's reason.
    """
    reasons = []
    for family in families():
        reason = family.obstacle(model)
        if reason is None:
            return family
        reasons.append(f"\n  - {family.name}: {reason}")
    raise UserError(f"no family of transformers computes what this model does:{''.join(reasons)}")
