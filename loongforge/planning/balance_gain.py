"""What each balance mode would gain on a recipe's own samples, simulated with the planner's cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loongforge.config.schema import Config
from loongforge.data.arrange import Arrangement, Load, Rules, arrange
from loongforge.parallel.images import sizes
from loongforge.parallel.layout import Layout
from loongforge.planning.packing import packing_rules

MODES = ("none", "llm", "full")


@dataclass(frozen=True)
class Gain:
    """Of a mode, over some steps."""

    mode: str
    step: float
    """Time of a step over that of mode `none`."""
    micro_batches: float
    """Mean number in a step."""
    fill: float
    """Part of the micro-batches' budget that is used."""
    balance_llm: float
    """Mean of the largest replica's LLM cost over the mean one."""
    balance_vision: float
    """The same of encoder replicas."""


def gains(config: Config, layout: Layout, steps: Sequence[Sequence[Load]]) -> list[Gain]:
    """Arranges some global batches under every mode.

    Args:
        config: The recipe, with packing.
        layout: Of the run.
        steps: Samples of each.
    """
    found, reference = [], 0.0
    for mode in MODES:
        changed = replace(config, balance=replace(config.balance, mode=mode))  # type: ignore[arg-type]
        rules = packing_rules(changed, layout)
        assert rules is not None
        cells = [_cells(loads, arrange(loads, rules), rules) for loads in steps]
        seconds = sum(_time(vision, llm, rules, layout.llm.pp) for vision, llm, _ in cells)
        reference = reference or seconds
        tokens = sum(int(used.sum()) for _, _, used in cells)
        found.append(
            Gain(
                mode,
                seconds / reference,
                float(np.mean([used.shape[1] for _, _, used in cells])),
                tokens / sum(used.size * rules.token_budget for _, _, used in cells),
                float(np.mean([_imbalance(llm) for _, llm, _ in cells])),
                float(np.mean([_imbalance(vision) for vision, _, _ in cells])),
            )
        )
    return found


def _cells(loads: Sequence[Load], arrangement: Arrangement, rules: Rules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encoder cost `[encoders, K]`, LLM cost and tokens `[replicas, K]`."""
    number = len(arrangement.cells[0])
    vision = np.zeros((max(1, rules.encoders), number))
    llm, tokens = np.zeros((rules.replicas, number)), np.zeros((rules.replicas, number), np.int64)
    for replica, row in enumerate(arrangement.cells):
        for place, cell in enumerate(row):
            for sample in cell:
                length = loads[sample].tokens
                units = rules.cost.units(sizes(loads[sample].shapes, "patches"))
                tokens[replica, place] += length
                llm[replica, place] += float(rules.cost.documents(np.array([length]))[0])
                if arrangement.encoders is not None:
                    np.add.at(vision[:, place], arrangement.encoders[sample], units)
                else:  # shared by the encoder replicas that serve this one
                    first = replica * len(vision) // rules.replicas
                    last = max(first + 1, (replica + 1) * len(vision) // rules.replicas)
                    vision[first:last, place] += float(units.sum()) / (last - first)
    return vision, llm, tokens


def _time(vision: np.ndarray, llm: np.ndarray, rules: Rules, stages: int) -> float:
    if rules.objective == "lock_step" or len(vision) != len(llm):
        return float(vision.max(0).sum() + llm.max(0).sum())
    cells = vision + llm
    return float((cells.sum(1) + (stages - 1) * cells.max(1)).max()) / stages


def _imbalance(cells: np.ndarray) -> float:
    ranks = cells.sum(1)
    return float(ranks.max() / ranks.mean()) if ranks.any() else 1.0
