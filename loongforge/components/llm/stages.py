"""How layers are divided over pipeline stages. No torch here."""

from __future__ import annotations

from collections.abc import Sequence


def stage_sizes(num_layers: int, pp: int) -> list[int]:
    """Layers of each stage. Where they cannot be divided evenly the first and the last stage, which have the embedding
    and the output layer, hold fewer than those between, which hold the same number (as megatron-core wants it).

    Args:
        num_layers: At least `pp`.
        pp: Stages.
    """
    if num_layers % pp == 0:
        return [num_layers // pp] * pp
    between = -(-num_layers // pp)
    if num_layers - between * (pp - 2) < 2:
        between = num_layers // pp
    ends = num_layers - between * (pp - 2)
    return [ends - ends // 2, *[between] * (pp - 2), ends // 2]


def stage_layers(num_layers: int, pp: int, stage: int) -> range:
    """Numbers, from 0, of the layers of a stage."""
    sizes: Sequence[int] = stage_sizes(num_layers, pp)
    first = sum(sizes[:stage])
    return range(first, first + sizes[stage])
