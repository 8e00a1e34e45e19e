"""The best layouts for a number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from loongforge.config.schema import Config
from loongforge.planning.choices import Choice, legal_choices, micro_batch
from loongforge.planning.device import Device
from loongforge.planning.leaner import LEANER
from loongforge.planning.predict import Prediction, predict
from loongforge.planning.workload import Costs, Workload


@dataclass(frozen=True)
class Found:
    """A layout with its prediction."""

    choice: Choice
    config: Config
    """The recipe with the layout, and with the micro-batch size and recomputation that it needs to fit."""
    prediction: Prediction
    fits: bool


def search(config: Config, world: int, workload: Workload, device: Device) -> list[Found]:
    """All legal layouts: those that fit from the fastest to the slowest, then the others from the leanest.

    Where a layout does not fit with the recipe's settings, a distributed optimizer, micro-batches of one sample and
    full recomputation are added one after another.
    """
    costs = Costs(config, workload)
    work = costs.step_flops
    share = world * (1 - work["llm"] / sum(work.values()))
    offered = legal_choices(config, world, tokens=workload.tokens, decoupled_ranks=share)
    found = [_fitted(costs, choice, device) for choice in offered]
    return sorted(found, key=lambda one: (not one.fits, _merit(one)))


def _merit(found: Found) -> float:
    return found.prediction.times.total if found.fits else found.prediction.memory.total


def _fitted(costs: Costs, choice: Choice, device: Device) -> Found:
    """The layout with the first of these that fits: the recipe's settings, a distributed optimizer, samples one by one,
    recomputation."""
    config = choice.config(costs.config, **micro_batch(costs.config, choice.layout))
    found = _found(costs, choice, config, device)
    for setting in LEANER:
        if found.fits:
            break
        leaner = setting.applied(config)
        if leaner is not config:
            config = leaner
            found = _found(costs, choice, config, device)
    return found


def _found(costs: Costs, choice: Choice, config: Config, device: Device) -> Found:
    prediction = predict(costs.with_config(config), choice.layout, device)
    return Found(choice, config, prediction, prediction.fits(device))
