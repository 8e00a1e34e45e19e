"""What would fit, or be faster."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from loongforge.config.schema import Config
from loongforge.parallel.layout import Layout
from loongforge.planning.choices import overrides
from loongforge.planning.device import Device
from loongforge.planning.predict import Prediction, predict
from loongforge.planning.search import Found, search
from loongforge.planning.workload import Costs

WORTH_SAYING = 1.05
"""Ratio of step times from which on another layout is worth a line."""
_LEANER = (
    ("optimizer.distributed=true", "optimizer", {"distributed": True}),
    ("trainer.micro_batch_size=1", "trainer", {"micro_batch_size": 1}),
    ("trainer.recompute=full", "trainer", {"recompute": "full"}),
)


def advise(costs: Costs, layout: Layout, device: Device) -> list[str]:
    """Sentences: what fits where the recipe does not, and which layout of as many ranks is faster."""
    present = predict(costs, layout, device)
    best = search(costs.config, layout.world_size, costs.workload, device)[:1]
    if present.fits(device):
        return _faster(costs.config, present, best)
    found = [*_leaner(costs, layout, device), *(_fitting(costs.config, one) for one in best if one.fits)]
    return found or ["nothing that is tried fits: take more devices, shorter samples or a smaller model"]


def _leaner(costs: Costs, layout: Layout, device: Device) -> list[str]:
    """The fewest settings, of those that cost least, with which the same layout fits."""
    config, added = costs.config, []
    for text, section, values in _LEANER:
        if all(getattr(getattr(config, section), key) == value for key, value in values.items()):
            continue
        config = copy(config)
        setattr(config, section, replace(getattr(config, section), **values))
        added.append(text)
        found = predict(costs.with_config(config), layout, device)
        if found.fits(device):
            return [f"fits with {' '.join(added)}: {_gib(found)} GiB, {found.times.total:.3g} s a step"]
    return []


def _fitting(config: Config, found: Found) -> str:
    prediction = found.prediction
    wanted = " ".join(overrides(config, found.config))
    return f"the fastest layout that fits: {wanted} ({_gib(prediction)} GiB, {prediction.times.total:.3g} s a step)"


def _faster(config: Config, present: Prediction, best: list[Found]) -> list[str]:
    for found in best:
        ratio = present.times.total / found.prediction.times.total
        wanted = " ".join(overrides(config, found.config))
        if found.fits and wanted and ratio >= WORTH_SAYING:
            return [f"better: {wanted} is predicted {ratio:.2f} times as fast ({_gib(found.prediction)} GiB)"]
    return []


def _gib(found: Prediction) -> str:
    return f"{found.memory.total / 2**30:.1f}"
