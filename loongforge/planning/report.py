"""Everything that `loongforge plan` says, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from loongforge.config.schema import Config
from loongforge.model.flops import num_params
from loongforge.parallel.layout import COMPONENTS, Layout
from loongforge.planning.choices import overrides
from loongforge.planning.device import Device
from loongforge.planning.memory import memory_on
from loongforge.planning.predict import Prediction, predict
from loongforge.planning.search import Found
from loongforge.planning.traffic import traffic_on
from loongforge.planning.workload import Costs


def report(costs: Costs, layout: Layout, device: Device) -> dict[str, Any]:
    """The plan of a recipe under its layout."""
    config, found = costs.config, predict(costs, layout, device)
    components = component_sizes(costs, layout)
    return {
        "recipe": config.name,
        "processes": layout.world_size,
        "layout": {axis: layout.llm.sizes[axis] for axis in ("tp", "dp", "pp", "cp")},
        "grids": layout.describe(),
        "micro_batch_size": found.shape.micro_batch,
        "micro_batches": found.shape.micro_batches,
        "encode_window": found.shape.window,
        "workload": asdict(costs.workload) | {"image_tokens": costs.image_tokens},
        "components": components,
        "params": sum(size["params"] for size in components.values()),
        "trainable_params": sum(size["trainable_params"] for size in components.values()),
        "device": asdict(device),
        "memory": _memory(found, device),
        "step": _step(costs, found, device),
        "ranks": [rank_plan(costs, layout, rank) for rank in range(layout.world_size)],
    }


def component_sizes(costs: Costs, layout: Layout) -> dict[str, dict[str, Any]]:
    """Type, layout, size and FLOPs of each component; `forward_flops` are of an image, for the LLM of a token."""
    params, model = num_params(costs.config.model), costs.config.model
    forward = {"llm": costs.llm_flops_per_token}
    if costs.vision is not None:
        forward |= costs.flops_per_image
    return {
        name: {
            "type": part.type,
            "layout": layout.text(name),
            "params": params[name],
            "trainable_params": costs.trained(name),
            "forward_flops": forward[name],
            "per": "token" if name == "llm" else "image",
            "factor": 2 * costs.factors[name],
            "step_flops": costs.step_flops[name],
        }
        for name in COMPONENTS
        if (part := getattr(model, name)) is not None
    }


def _memory(found: Prediction, device: Device) -> dict[str, Any]:
    return {
        "fullest_rank": found.fullest,
        "bytes": found.memory.total,
        "usable_bytes": device.usable_bytes,
        "fits": found.fits(device),
    }


def _step(costs: Costs, found: Prediction, device: Device) -> dict[str, Any]:
    seconds = found.times.total
    return {
        "seconds": seconds,
        "samples_per_s": costs.config.trainer.global_batch_size / seconds,
        "mfu": found.mfu(device, costs.dtype("llm")),
        "bubble": found.times.bubble / seconds,
        "times": asdict(found.times),
    }


def rank_plan(costs: Costs, layout: Layout, rank: int) -> dict[str, Any]:
    """What a rank holds, and what it receives in a step, in bytes."""
    places: dict[str, Any] = {}
    params = 0
    for name, grid in layout.grids().items():
        place = grid.place(rank)
        if place is None:
            continue
        places[name] = asdict(place) if name == "llm" else {"tp": place.tp, "dp": place.dp}
        if name == "llm":
            each = costs.llm.num_layers // grid.pp
            places[name]["layers"] = [place.pp * each, (place.pp + 1) * each - 1]
        params += costs.params_on(name, layout, place.pp)
    memory, traffic = memory_on(costs, layout, rank), traffic_on(costs, layout, rank)
    return {
        "rank": rank,
        **places,
        "params": params,
        "memory": asdict(memory) | {"total": memory.total},
        "received": asdict(traffic) | {"total": traffic.total},
    }


def found_layout(config: Config, found: Found, device: Device) -> dict[str, Any]:
    """A result of a search; `overrides` lead from the recipe to it."""
    times = found.prediction.times
    return {
        "overrides": overrides(config, found.config),
        "grids": {name: found.choice.layout.text(name) for name in found.choice.layout.grids()},
        "seconds": times.total,
        "mfu": found.prediction.mfu(device, found.config.model.llm.dtype or found.config.trainer.precision),
        "bubble": times.bubble / times.total,
        "bytes": found.prediction.memory.total,
        "fits": found.fits,
    }
