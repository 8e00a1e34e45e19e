"""The best layouts for a number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from loongforge.config.schema import Config
from loongforge.model.checks import micro_batch_size
from loongforge.parallel.grid import divisors
from loongforge.planning.choices import Choice, legal_choices
from loongforge.planning.device import Device
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

    Where a layout does not fit with the recipe's micro-batch size and recomputation, a smaller micro-batch, and after
    that full recomputation, is tried.
    """
    costs = Costs(config, workload)
    found = [_fitted(costs, choice, device) for choice in legal_choices(config, world, tokens=workload.tokens)]
    return sorted(found, key=lambda one: (not one.fits, _merit(one)))


def _merit(found: Found) -> float:
    return found.prediction.times.total if found.fits else found.prediction.memory.total


def _fitted(costs: Costs, choice: Choice, device: Device) -> Found:
    config = costs.config
    share = config.trainer.global_batch_size // choice.layout.dp
    largest = max(size for size in divisors(share) if size <= micro_batch_size(config, choice.layout))
    attempts = [(largest, config.trainer.recompute), (1, config.trainer.recompute), (1, "full")]
    for micro_batch, recompute in dict.fromkeys(attempts):
        trainer: dict[str, object] = {"recompute": recompute}
        if micro_batch != micro_batch_size(config, choice.layout):
            trainer["micro_batch_size"] = micro_batch
        changed = choice.config(config, **trainer)
        prediction = predict(costs.with_config(changed), choice.layout, device)
        found = Found(choice, changed, prediction, prediction.fits(device))
        if found.fits:
            break
    return found
