"""How the samples of a global batch lie in packed rows."""

from __future__ import annotations

from collections.abc import Sequence

from loongforge.data.arrange import Arrangement, Load, Rules
from loongforge.data.visible import visible


def pack_lines(arrangement: Arrangement, loads: Sequence[Load], ids: Sequence[str], rules: Rules) -> list[str]:
    """A line for each row: its tokens, and its documents between borders.

    Args:
        arrangement: Of the batch.
        loads: Of its samples.
        ids: Of its samples.
        rules: That arranged it.
    """
    lines = []
    for replica, row in enumerate(arrangement.cells):
        for number, cell in enumerate(row):
            documents = [_document(sample, loads[sample], ids[sample], arrangement) for sample in cell]
            used = sum(loads[sample].tokens for sample in cell)
            where = f"replica {replica}, micro-batch {number}"
            lines.append(f"{where}: {used} of {rules.token_budget} tokens | " + " | ".join(documents))
    return lines


def _document(sample: int, load: Load, name: str, arrangement: Arrangement) -> str:
    text = f"{visible(name)} {load.tokens}"
    if not load.images:
        return text
    number, tiles = len(load.images), len(load.shapes)
    images = f"{number} image(s)" + (f" in {tiles} tiles" if tiles > number else "")
    if arrangement.encoders is not None:
        replicas = sorted(set(arrangement.encoders[sample].tolist()))
        images += f" encoded by {', '.join(map(str, replicas))}"
    return f"{text} ({images})"
