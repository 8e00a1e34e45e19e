"""What would fit, or be faster."""

from __future__ import annotations

from itertools import combinations

from loongforge.config.schema import Config
from loongforge.model.checks import problems
from loongforge.parallel.layout import Layout
from loongforge.planning.choices import overrides
from loongforge.planning.device import Device
from loongforge.planning.leaner import LEANER
from loongforge.planning.predict import Prediction, predict
from loongforge.planning.search import Found, search
from loongforge.planning.workload import Costs

WORTH_SAYING = 1.05
"""Ratio of step times from which on another layout is worth a line."""


def advise(costs: Costs, layout: Layout, device: Device) -> list[str]:
    """Sentences: what fits where the recipe does not, and which layout of as many ranks is faster."""
    present = predict(costs, layout, device)
    best = search(costs.config, layout.world_size, costs.workload, device)[:1]
    if present.fits(device):
        return _faster(costs.config, present, best)
    found = [*_leaner(costs, layout, device), *(_fitting(costs.config, one) for one in best if one.fits)]
    return found or ["nothing that is tried fits: take more devices, shorter samples or a smaller model"]


def _leaner(costs: Costs, layout: Layout, device: Device) -> list[str]:
    """The fewest settings with which the same layout fits; of as few, those that cost least time."""
    wanted = [setting for setting in LEANER if setting.applied(costs.config) is not costs.config]
    for number in range(1, len(wanted) + 1):
        found = []
        for settings in combinations(wanted, number):
            config = costs.config
            for setting in settings:
                config = setting.applied(config)
            prediction = predict(costs.with_config(config), layout, device)
            if prediction.fits(device) and not problems(config, layout):
                found.append((prediction.times.total, " ".join(map(str, settings)), prediction))
        if found:
            seconds, text, prediction = min(found, key=lambda one: one[0])
            return [f"fits with {text}: {_gib(prediction)} GiB, {seconds:.3g} s a step"]
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
