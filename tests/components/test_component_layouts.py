"""Encoders and projectors divided over ranks train as in one process: losses, every gradient, norms; with recomputed
layers and distributed optimizer; and planned parameters are those that a rank holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loongforge.config.schema import Config
from loongforge.parallel.layout import Layout
from loongforge.planning.workload import Costs, Workload
from loongforge.training.verify.compare import compare
from tests.parallel.cases import train
from tests.parallel.matrix import Choice
from tests.planning.cases import held_parameters
from tests.support.ranks import RankPool
from tests.support.tiny import tiny_config

Pools = Callable[[int], RankPool]
TWO = Choice(2, (("tp", 2),), (("tp", 2),))
FOUR = Choice(4, (("tp", 2),), (("tp", 4),))
APART = Choice(4, (("tp", 2), ("ranks", (0, 1))), (("tp", 2), ("ranks", (2, 3))), (("tp", 1),))

CASES: dict[str, tuple[Choice, dict[str, Any]]] = {
    "internvit, pixel shuffle": (TWO, dict(vision="internvit", projector="pixel_shuffle")),
    "InternViT-6B's layers": (
        FOUR,
        dict(vision="internvit", vision_changes=dict(norm="rms_norm", qk_norm=True, qkv_bias=False), projector="mlp"),
    ),
    "internvit elsewhere": (APART, dict(vision="internvit", vision_changes=dict(qk_norm=True), projector="linear")),
    "dinov2 with registers, perceiver": (
        TWO,
        dict(vision="dinov2", vision_changes=dict(registers=2), projector="perceiver"),
    ),
    "dinov2 with SwiGLU, resampler": (
        FOUR,
        dict(vision="dinov2", vision_changes=dict(swiglu=True), projector="resampler"),
    ),
    "VisualChat": (
        TWO,
        dict(
            projector="perceiver", vision_changes=dict(freeze=True), attention="mmca", freeze=True, train=["embedding"]
        ),
    ),
    "a ViT layer as projector": (TWO, dict(projector="vit")),
    "a ViT layer as projector, elsewhere": (APART, dict(projector="vit", vision="dinov2")),
}


def _config(options: dict[str, Any], **changes: Any) -> Config:
    config = tiny_config(**options, **changes)
    config.trainer.steps = 3
    return config


@pytest.mark.parametrize("name", CASES)
def test_layout_equals_one_process(name: str, rank_pool: Pools) -> None:
    choice, options = CASES[name]
    reference = rank_pool(1).run(train, _config(options))[0]
    config = choice.apply(_config(options, distributed=True))
    config.trainer.recompute = "full"
    assert not compare(reference, rank_pool(choice.world).run(train, config)).problems


@pytest.mark.parametrize("name", CASES)
def test_planned_parameters_are_those_of_a_rank(name: str, rank_pool: Pools) -> None:
    choice, options = CASES[name]
    config = choice.apply(_config(options))
    costs, layout = Costs(config, Workload(16, 0.5)), Layout.from_model(config.model, choice.world)
    for rank, held in enumerate(rank_pool(choice.world).run(held_parameters, config)):
        places = {part: grid.place(rank) for part, grid in layout.grids().items()}
        planned = {part: costs.params_on(part, layout, place.pp) for part, place in places.items() if place is not None}
        assert planned == held
