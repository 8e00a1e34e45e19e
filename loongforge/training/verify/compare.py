"""Two trials of the same small recipe, compared component by component. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from loongforge.parallel.layout import COMPONENTS
from loongforge.training.verify.outcome import Outcome

LOSS, NORM, GRADIENT, PARAMETER = 2e-5, 1e-5, 1e-4, 1e-3
"""Largest differences between two orders of the same fp32 sums over 25 steps: losses in nats, norms relative, first
gradients relative to their parameter's gradient; parameters relative to the step sizes (AdamW turns a gradient near
zero into a step of either sign, so these are shown, and judged as the sum over a component)."""


@dataclass
class ComponentDifference:
    """Worst figures of a component."""

    gradient: float = 0.0
    """Relative."""
    gradient_of: str = ""
    """The parameter that it is of."""
    parameter: float = 0.0
    """Distance of all parameters after the last step, relative to their length."""


@dataclass
class Comparison:
    """A layout against one process."""

    loss: float
    """Largest difference of a step's losses, in nats."""
    norm: float
    """Largest relative difference of a step's gradient norms."""
    components: dict[str, ComponentDifference] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Everything above its tolerance; empty: the layout is exact."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(reference: Outcome, ranks: Sequence[Outcome]) -> Comparison:
    """Compares the ranks of a layout with one process."""
    first = ranks[0]
    # numpy's maximum, unlike Python's, keeps what is not a number
    loss = float(np.max(np.abs(np.subtract(reference.losses, first.losses))))
    norm = float(np.max(np.abs(np.subtract(reference.norms, first.norms)) / np.maximum(reference.norms, 1e-9)))
    found = Comparison(_finite(loss), _finite(norm))
    if not found.loss <= LOSS:
        found.problems.append(f"losses differ by {loss:.1e}, more than {LOSS:.0e}")
    if not found.norm <= NORM:
        found.problems.append(f"gradient norms differ by {norm:.1e} relative, more than {NORM:.0e}")
    found.problems += [f"replicas of {name} are not the same on all ranks" for name in first.differing]
    moved = sorted({name for rank in ranks for name in rank.moved})
    found.problems += [f"{name} is frozen and has changed" for name in moved]
    _compare_gradients(reference, ranks, found)
    _compare_parameters(reference, ranks, found)
    found.components = {name: found.components[name] for name in COMPONENTS if name in found.components}
    return found


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float("inf")


def _component(found: Comparison, name: str) -> ComponentDifference:
    return found.components.setdefault(name.split(".")[0], ComponentDifference())


def _compare_gradients(reference: Outcome, ranks: Sequence[Outcome], found: Comparison) -> None:
    total = np.sqrt(sum(float(np.square(g).sum()) for g in reference.gradients.values()))
    seen = {name: gradient for rank in ranks for name, gradient in rank.gradients.items()}
    for name, gradient in reference.gradients.items():
        component = _component(found, name)
        if name not in seen:
            found.problems.append(f"no rank has a gradient of {name}")
            continue
        length = max(float(np.linalg.norm(gradient)), 1e-4 * total)
        error = _finite(float(np.linalg.norm(gradient - seen[name])) / length) if length else 0.0
        if error >= component.gradient:
            component.gradient, component.gradient_of = error, name
        if not error <= GRADIENT:
            found.problems.append(f"gradient of {name} differs by {error:.1e} relative, more than {GRADIENT:.0e}")


def _compare_parameters(reference: Outcome, ranks: Sequence[Outcome], found: Comparison) -> None:
    seen = {name: value for rank in ranks for name, value in rank.parameters.items()}
    sums: dict[str, list[float]] = {}
    for name, value in reference.parameters.items():
        pair = sums.setdefault(name.split(".")[0], [0.0, 0.0])
        if name not in seen:
            found.problems.append(f"no rank holds {name}")
            continue
        pair[0] += float(np.square(value - seen[name]).sum())
        pair[1] += float(np.square(value).sum())
    for name, (difference, length) in sums.items():
        error = _finite(float(np.sqrt(difference / max(length, 1e-30))))
        _component(found, name).parameter = error
        if not error <= PARAMETER:
            found.problems.append(f"parameters of {name} differ by {error:.1e} relative, more than {PARAMETER:.0e}")
