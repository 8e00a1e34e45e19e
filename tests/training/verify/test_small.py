"""Layouts cut to few processes stay legal, and keep what makes them special. No processes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loongforge.config.errors import UserError
from loongforge.config.schema import Config, ParallelConfig
from loongforge.parallel.grid import divisors, ranks_text
from loongforge.parallel.layout import Layout
from loongforge.training.verify.small import cut_layout, small_copy
from tests.support.tiny import tiny_config

Recipe = tuple[Config, Layout]


def _recipe(world: int, **parallel: dict[str, Any]) -> Recipe:
    config = tiny_config()
    for name, options in parallel.items():
        getattr(config.model, name).parallel = ParallelConfig(**options)
    return config, Layout.from_model(config.model, world)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any LLM; an encoder on its ranks, on a stage of it, on some, or on others; a projector with a TP of its own."""
    tp, cp, pp, dp = (draw(st.sampled_from(sizes)) for sizes in ((1, 2, 3, 8), (1, 2, 4), (1, 2, 3, 4), (1, 2, 3, 8)))
    number, own = tp * cp * pp * dp, draw(st.integers(0, 16))
    world = number + own
    order = list(range(world)) if draw(st.booleans()) else list(range(world))[::-1]
    llm: dict[str, Any] = dict(tp=tp, cp=cp, pp=pp, sequence_parallel=tp > 1 and draw(st.booleans()))
    llm["ranks"] = sorted(order[:number])
    size = {"all": number, "a stage": number // pp, "some": draw(st.integers(1, number))}[draw(_PLACES)]
    first = draw(st.integers(0, number - size))
    encoder = order[number:] or llm["ranks"][first : first + size]
    vision = dict(ranks=encoder, tp=draw(st.sampled_from(divisors(len(encoder)))))
    projector = dict(tp=draw(st.sampled_from([None, *divisors(len(encoder))])))
    return _recipe(world, llm=llm, vision=vision, projector=projector)


_PLACES = st.sampled_from(["all", "a stage", "some"])


@given(recipes(), st.integers(1, 64))
def test_a_cut_layout_is_legal_small_and_like_the_whole(recipe: Recipe, limit: int) -> None:
    config, whole = recipe
    if _smallest(whole) > limit:
        with pytest.raises(UserError, match=f"--max-processes {limit}$"):
            cut_layout(config.model, whole, limit)
        return
    found = small_copy(config, whole, steps=3, limit=limit)  # refuses sizes that do not fit the layout
    cut = found.layout
    assert cut == Layout.from_model(found.config.model, cut.world_size)
    assert whole.vision is not None and cut.vision is not None
    assert cut.world_size <= limit
    assert cut == whole or whole.world_size > limit
    assert cut.decoupled == whole.decoupled
    assert cut.sequence_parallel == whole.sequence_parallel
    for axis in ("tp", "cp", "pp"):
        assert (cut.llm.sizes[axis] > 1) == (whole.llm.sizes[axis] > 1), axis
    if whole.decoupled:  # also who comes first: rank 0 writes checkpoints and reports
        assert (0 in cut.vision.ranks) == (0 in whole.vision.ranks)
        assert (cut.vision.tp > 1) == (whole.vision.tp > 1)


def _smallest(layout: Layout) -> int:
    """Ranks without which an axis of the LLM, or of an encoder on ranks of its own, would lose its size above 1."""
    assert layout.vision is not None
    llm = min(layout.llm.tp, 2) * min(layout.llm.cp, 2) * min(layout.llm.pp, 2)
    return llm + (min(layout.vision.tp, 2) if layout.decoupled else 0)


@pytest.mark.parametrize("limit", [8, 100])
def test_a_layout_that_fits_stays_as_it_is(limit: int) -> None:
    config, layout = _recipe(8, llm=dict(tp=2, pp=2), vision=dict(tp=4))
    cut = cut_layout(config.model, layout, limit)
    assert cut.world_size == 8
    assert all(cut.parallel[name] is getattr(config.model, name).parallel for name in ("vision", "projector", "llm"))


FIRST_8, LAST_8, ALL_64 = list(range(8)), list(range(64, 72)), list(range(64))
WHOLE: dict[str, tuple[int, dict[str, Any], str]] = {  # number of processes, layout; what it is cut to with at most 8
    "replicas": (64, {}, "vision tp1 dp2 on ranks 0-1, llm tp1 dp2 on ranks 0-1"),
    "replicas before other sizes": (
        64,
        dict(llm=dict(tp=2, pp=2)),
        "vision tp1 dp8 on ranks 0-7, llm tp2 dp2 pp2 on ranks 0-7",
    ),
    "every size": (
        512,
        dict(llm=dict(tp=8, cp=8, pp=8), vision=dict(tp=8)),
        "vision tp2 dp4 on ranks 0-7, llm tp2 cp2 dp1 pp2 on ranks 0-7",
    ),
    "odd sizes": (
        75,
        dict(llm=dict(tp=5, pp=3), vision=dict(tp=3)),
        "vision tp2 dp4 on ranks 0-7, llm tp2 dp2 pp2 on ranks 0-7",
    ),
    "encoders last": (
        72,
        dict(llm=dict(tp=8), vision=dict(tp=8, ranks=LAST_8)),
        "vision tp2 dp1 on ranks 4-5, llm tp2 dp2 on ranks 0-3",
    ),
    "encoders first": (
        72,
        dict(llm=dict(tp=8), vision=dict(tp=8, ranks=FIRST_8)),
        "vision tp2 dp1 on ranks 0-1, llm tp2 dp2 on ranks 2-5",
    ),
    "projectors of their own TP": (
        72,
        dict(llm=dict(tp=8), vision=dict(tp=4, ranks=FIRST_8), projector=dict(tp=1)),
        "vision tp2 dp2 on ranks 0-3, projector tp1 dp4 on ranks 0-3, llm tp2 dp2 on ranks 4-7",
    ),
    "encoders on the first stage": (
        64,
        dict(llm=dict(pp=8, ranks=ALL_64), vision=dict(ranks=FIRST_8)),
        "vision tp1 dp2 on ranks 0-1, llm tp1 dp2 pp2 on ranks 0-3",
    ),
    "encoders on the last stage": (
        64,
        dict(llm=dict(pp=8, ranks=ALL_64), vision=dict(ranks=list(range(56, 64)))),
        "vision tp1 dp2 on ranks 2-3, llm tp1 dp2 pp2 on ranks 0-3",
    ),
    "encoders in the middle": (
        64,
        dict(llm=dict(ranks=ALL_64), vision=dict(ranks=list(range(8, 16)))),
        "vision tp1 dp1 on rank 1, llm tp1 dp2 on ranks 0-1",
    ),
}


def _shown(layout: Layout) -> str:
    """Grids; the projector's where it is not the encoder's."""
    grids = {name: grid for name, grid in layout.grids().items() if name != "projector" or grid != layout.vision}
    return ", ".join(f"{name} {grid} on {ranks_text(grid.ranks)}" for name, grid in grids.items())


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_cut(name: str) -> None:
    world, parallel, expected = WHOLE[name]
    config, layout = _recipe(world, **parallel)
    assert _shown(small_copy(config, layout, steps=3, limit=8).layout) == expected


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_what_cannot_be_cut_further_is_refused(limit: int) -> None:
    config, layout = _recipe(64, llm=dict(tp=4, pp=2))
    with pytest.raises(UserError, match=rf"has 4 processes, more than --max-processes {limit}"):
        cut_layout(config.model, layout, limit)


def test_a_text_only_recipe() -> None:
    config = tiny_config(parallel=ParallelConfig(tp=4, cp=2))
    config.model.vision = config.model.projector = None
    found = small_copy(config, Layout.from_model(config.model, 64), steps=3, limit=4)
    assert list(found.layout.grids()) == ["llm"]
    assert found.layout.llm.sizes == {"tp": 2, "cp": 2, "dp": 1, "pp": 1}


def test_a_small_copy_keeps_what_the_recipe_decides() -> None:
    config = tiny_config(
        parallel=ParallelConfig(pp=2),
        precision="bf16",
        distributed=True,
        tie_embeddings=True,
        qk_norm=True,
        freeze=True,
    )
    config.model.vision.dtype, config.trainer.encode_window = "bf16", 2  # type: ignore[union-attr]
    small = small_copy(config, Layout.from_model(config.model, 4), steps=7, limit=4).config
    llm: Any = small.model.llm
    assert (llm.tie_embeddings, llm.qk_norm, llm.freeze, llm.parallel.pp) == (True, True, True, 2)
    assert (small.optimizer.distributed, small.trainer.encode_window, small.trainer.steps) == (True, 2, 7)
    assert llm.num_params() < 100_000
    # what would hide a mistake, or does not run here
    assert (small.backend, small.trainer.precision, small.model.vision.dtype) == ("cpu", "fp32", None)  # type: ignore[union-attr]
    assert (config.trainer.precision, config.trainer.steps) == ("bf16", 30)  # the recipe itself is as it was
