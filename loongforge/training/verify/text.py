"""A comparison as lines to read. No torch here."""

from __future__ import annotations

from loongforge.parallel.layout import Layout
from loongforge.training.verify.compare import GRADIENT, LOSS, NORM, PARAMETER, Comparison

_SHOWN = 12


def report(layout: Layout, found: Comparison) -> str:
    """What differs from one process by how much, and the verdict."""
    lines = [
        f"{'component':<12}{'layout':<32}{'gradient':>10}{'parameters':>12}  worst gradient",
        *(
            f"{name:<12}{layout.text(name):<32}{part.gradient:>10.1e}{part.parameter:>12.1e}  {part.gradient_of}"
            for name, part in found.components.items()
        ),
        f"{'allowed':<44}{GRADIENT:>10.0e}{PARAMETER:>12.0e}",
        f"losses differ by at most {found.loss:.1e} (allowed {LOSS:.0e}), "
        f"gradient norms by {found.norm:.1e} (allowed {NORM:.0e})",
    ]
    if not found.problems:
        return "\n".join([*lines, "the layout trains as one process does"])
    lines += ["the layout does NOT train as one process does:", *(f"  - {line}" for line in found.problems[:_SHOWN])]
    if len(found.problems) > _SHOWN:
        lines.append(f"  - and {len(found.problems) - _SHOWN} more")
    return "\n".join(lines)
