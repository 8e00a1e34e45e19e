"""Predicted sizes are those of the real thing: parameters, kept activations, rows that travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loongforge.parallel.layout import Layout
from loongforge.planning.choices import legal_choices
from loongforge.planning.memory import memory_on
from loongforge.planning.traffic import traffic_on
from loongforge.planning.workload import Costs, Workload
from tests.parallel.matrix import Choice, layouts, matrix_config
from tests.planning.cases import held_parameters, kept_bytes, received_rows
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
SOME = list(layouts(4))[::5]
DTYPE_BYTES = 4


def _costs(config: Any, tokens: int = 16, images: float = 0.5) -> Costs:
    return Costs(config, Workload(tokens, images))


@pytest.mark.parametrize("choice", SOME, ids=str)
def test_parameters_of_a_rank(choice: Choice, rank_pool: Pools) -> None:
    options = [dict(tie_embeddings=True), dict(qkv_bias=True, tie_embeddings=False)][SOME.index(choice) % 2]
    config = choice.with_projector_apart().apply(matrix_config(**options))
    costs, layout = _costs(config), Layout.from_model(config.model, choice.world)
    for rank, held in enumerate(rank_pool(choice.world).run(held_parameters, config)):
        predicted = {}
        for name, grid in layout.grids().items():
            place = grid.place(rank)
            if place is not None:
                predicted[name] = costs.params_on(name, layout, place.pp)
        assert predicted == held
        assert memory_on(costs, layout, rank).params == DTYPE_BYTES * sum(held.values())


@pytest.mark.parametrize(("part", "allowed"), [("llm", 0.15), ("vision", 0.15)])
def test_activations_of_a_layer(part: str, allowed: float, rank_pool: Pools) -> None:
    """Per layer: what four more layers keep."""
    size = 64
    sizes = dict(num_layers=2), dict(num_layers=6)
    configs = [
        matrix_config(**({} if part == "vision" else more), vision_changes=more if part == "vision" else None)
        for more in sizes
    ]
    few, many = (rank_pool(1).run(kept_bytes, config, part, size)[0] for config in configs)
    costs = _costs(configs[1])
    if part == "llm":
        predicted = 4 * size * costs.llm.kept_per_token(1, sequence_parallel=False)
    else:
        assert costs.vision is not None
        predicted = 4 / costs.vision.built_layers * size * costs.vision.kept_per_image(1)
    assert predicted * DTYPE_BYTES == pytest.approx(many - few, rel=allowed)


@pytest.mark.parametrize("choice", [c for c in layouts(4) if c.layout().dp in (1, 2)][::6], ids=str)
def test_image_rows_that_travel(choice: Choice, rank_pool: Pools) -> None:
    """Where sequences are divided, the place of the images decides which rank merges them, perhaps the one that made
    them; then the prediction, for images anywhere, is an upper bound here."""
    config = choice.apply(matrix_config())
    config.trainer.global_batch_size, config.trainer.micro_batch_size = 8, 2
    costs, layout = _costs(config), Layout.from_model(config.model, choice.world)
    received = rank_pool(choice.world).run(received_rows, config)
    predicted = [traffic_on(costs, layout, rank).image_rows for rank in range(choice.world)]
    if layout.llm.cp == 1 and not layout.sequence_parallel:
        assert sum(received) == pytest.approx(sum(predicted), rel=0.02), (received, predicted)
    assert sum(received) <= 1.02 * sum(predicted)


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_choices_are_what_the_engine_accepts(world: int) -> None:
    """Each is accepted with just these sizes, and none is left out of those that are offered at all."""
    config = matrix_config()
    offered = set()
    for choice in legal_choices(config, world, tokens=1000):
        made = Layout.from_model(choice.model(config.model), world)
        assert _sizes(made) == _sizes(choice.layout)
        assert set(made.grids()["vision"].ranks) == set(choice.layout.grids()["vision"].ranks)
        offered.add(_sizes(made))
    assert len(offered) > world
    for accepted in layouts(world):
        layout = accepted.layout()
        large_encoder = layout.decoupled and len(layout.grids()["vision"].ranks) > world // 2
        if layout.sequence_parallel == (layout.llm.tp > 1) and not large_encoder:
            assert _sizes(layout) in offered


def _sizes(layout: Layout) -> tuple[Any, ...]:
    grids = tuple((name, *grid.sizes.values(), len(grid.ranks)) for name, grid in layout.grids().items())
    return (layout.sequence_parallel, layout.decoupled, *grids)
