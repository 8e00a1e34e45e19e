"""The layouts under which every family is compared, and how a recipe gets one."""

from __future__ import annotations

from typing import Any

from loongforge.config.schema import Config, ParallelConfig

LAYOUTS: dict[str, tuple[int, dict[str, dict[str, Any]]]] = {
    "one process": (1, {}),
    "tp2": (2, {"llm": {"tp": 2}, "vision": {"tp": 2}}),
    "pp2": (2, {"llm": {"pp": 2}}),
    "tp2 x dp2": (4, {"llm": {"tp": 2}, "vision": {"tp": 2}}),
    "cp2": (2, {"llm": {"cp": 2}}),
    "tp4": (4, {"llm": {"tp": 4}}),
    "pp3": (3, {"llm": {"pp": 3}}),
    "ep2": (2, {"llm": {"ep": 2}}),
    "tp2 x ep2": (4, {"llm": {"tp": 2, "ep": 2}}),
    "cp2 x ep2": (2, {"llm": {"cp": 2, "ep": 2}}),
    "pp2 x ep2": (4, {"llm": {"pp": 2, "ep": 2}}),
    "encoder apart": (4, {"llm": {"tp": 2, "ranks": [2, 3]}, "vision": {"tp": 1, "ranks": [0, 1]}}),
}
"""Processes, and `parallel` of each component."""

NEEDS_VISION = ("encoder apart",)
SOME = ("cp2", "tp4", "pp3", "ep2", "tp2 x ep2", "cp2 x ep2", "pp2 x ep2")
"""For families that ask for them."""


def apply(config: Config, layout: str) -> Config:
    """The recipe under a layout; sections of components that it does not have are left out."""
    _, parts = LAYOUTS[layout]
    for name in ("vision", "projector", "llm"):
        part = getattr(config.model, name)
        if part is not None:
            part.parallel = ParallelConfig(**parts.get(name, {}))
    return config
