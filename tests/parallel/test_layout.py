"""Layouts: which rank holds what and works for which samples, and what is refused. No processes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loongforge.config.errors import UserError
from loongforge.config.schema import ModelConfig, ParallelConfig
from loongforge.parallel.grid import Grid, divisors
from loongforge.parallel.layout import Layout
from loongforge.parallel.routes import image_shares
from tests.support.tiny import tiny_config

SIZES = st.integers(1, 4)


def _model(llm: dict[str, Any] | None = None, **parts: dict[str, Any]) -> ModelConfig:
    model = tiny_config(parallel=ParallelConfig(**(llm or {}))).model
    for name, options in parts.items():
        getattr(model, name).parallel = ParallelConfig(**options)
    return model


def _layout(world: int, llm: dict[str, Any] | None = None, **parts: dict[str, Any]) -> Layout:
    return Layout.from_model(_model(llm, **parts), world)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any LLM, and an encoder on all its ranks, on some of them, or on others."""
    tp, cp, pp, dp = draw(SIZES), draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(SIZES)
    number = tp * cp * pp * dp
    where = draw(st.sampled_from(["everywhere", "some", "own"]))
    size = draw(st.integers(1, number))
    order = draw(st.permutations(range(number + (size if where == "own" else 0))))
    own = {"everywhere": None, "some": order[:size], "own": order[:size]}[where]
    llm: dict[str, Any] = dict(tp=tp, cp=cp, pp=pp, sequence_parallel=tp > 1 and draw(st.booleans()))
    if where == "some":
        llm["ranks"] = sorted(order)
    encoders = size if own else number
    vision = dict(ranks=own, tp=draw(st.sampled_from(divisors(encoders))))
    projector = dict(tp=draw(st.sampled_from([None, *divisors(encoders)])))
    return _layout(len(order), llm, vision=vision, projector=projector)


@given(layouts())
def test_every_rank_has_a_place(layout: Layout) -> None:
    held = {rank for grid in layout.grids().values() for rank in grid.ranks}
    assert held == set(range(layout.world_size))
    for grid in layout.grids().values():
        assert len(set(grid.ranks)) == len(grid.ranks) == grid.tp * grid.cp * grid.dp * grid.pp
    assert layout.vision is not None and layout.projector is not None
    assert set(layout.projector.ranks) == set(layout.vision.ranks)
    shared = set(layout.vision.ranks) & set(layout.llm.ranks)
    assert layout.decoupled == (not shared)
    assert shared in (set(), set(layout.vision.ranks))


@given(layouts(), st.sampled_from(["vision", "projector"]), st.integers(0, 40))
def test_the_images_of_every_llm_replica_are_divided_over_the_encoders_that_serve_it(
    layout: Layout, component: str, number: int
) -> None:
    grid: Any = layout.grid(component)
    for replica in range(layout.dp):
        shares = image_shares(layout, component, replica, number)
        serving = [e for e in range(grid.dp) if replica in layout.served(component, e)]
        assert list(shares) == serving
        assert serving
        assert [image for share in shares.values() for image in share] == list(range(number))
        if grid.dp % layout.dp == 0:  # each LLM replica has encoders of its own, with even shares
            assert max(map(len, shares.values())) - min(map(len, shares.values())) <= 1


@given(layouts(), st.integers(1, 40))
def test_every_encoder_replica_takes_an_even_part_of_all_images(layout: Layout, number: int) -> None:
    """Also where its data-parallel size does not divide the LLM's: an equal load from every replica, an equal share."""
    assert layout.vision is not None
    loads = dict.fromkeys(range(layout.vision.dp), 0)
    most = 0
    for replica in range(layout.dp):
        shares = image_shares(layout, "vision", replica, number)
        most = max(most, len(shares))
        for encoder, share in shares.items():
            loads[encoder] += len(share)
    even = number * layout.dp / layout.vision.dp
    parts = max(len(layout.served("vision", encoder)) for encoder in loads)
    assert all(abs(load - even) <= parts for load in loads.values())  # rounded once for each replica served


@given(layouts())
def test_a_rank_works_on_the_replicas_that_it_holds_or_serves(layout: Layout) -> None:
    for rank in range(layout.world_size):
        place = layout.llm.place(rank)
        expected = set() if place is None else {place.dp}
        for name in ("vision", "projector"):
            grid: Any = layout.grid(name)
            if (at := grid.place(rank)) is not None:
                expected |= set(layout.served(name, at.dp))
        assert layout.replicas(rank) == tuple(sorted(expected))


@given(layouts())
def test_an_encoder_on_the_llms_ranks_serves_the_replica_that_it_is_a_part_of(layout: Layout) -> None:
    assume(layout.vision is not None and set(layout.vision.ranks) == set(layout.llm.ranks))
    assert layout.vision is not None
    for rank in layout.vision.ranks:
        here, own = layout.vision.place(rank), layout.llm.place(rank)
        assert here is not None and own is not None
        assert own.dp in layout.served("vision", here.dp)
        if layout.vision.dp % layout.dp == 0 and layout.projector == layout.vision:
            assert layout.replicas(rank) == (own.dp,)  # nothing of other replicas has to be loaded


@given(layouts())
def test_one_rank_of_the_first_stage_speaks_for_each_replica(layout: Layout) -> None:
    speakers = [layout.reporting_rank(replica) for replica in range(layout.dp)]
    places = [layout.llm.place(rank) for rank in speakers]
    assert [(p.tp, p.cp, p.dp, p.pp) for p in places if p] == [(0, 0, replica, 0) for replica in range(layout.dp)]


def test_encoders_lie_on_all_ranks_unless_told_otherwise() -> None:
    layout = _layout(8, dict(tp=2, pp=2))
    assert layout.llm == Grid(tuple(range(8)), tp=2, pp=2)
    # ordered by replica: ranks 0, 1 and 4, 5 are the two stages of replica 0
    assert layout.vision == layout.projector == Grid((0, 1, 4, 5, 2, 3, 6, 7))
    assert not layout.decoupled
    assert [layout.replicas(rank) for rank in range(8)] == [(0,), (0,), (1,), (1,), (0,), (0,), (1,), (1,)]


@pytest.mark.parametrize(
    ("vision", "expected"),
    [
        (dict(tp=2), Grid((0, 1, 2, 3), tp=2)),
        (dict(dp=2), Grid((0, 1, 2, 3), tp=2)),
        (dict(tp=4, dp=1), Grid((0, 1, 2, 3), tp=4)),
        (dict(ranks=[3, 1]), Grid((1, 3))),
        (dict(ranks=[2, 3], tp=2), Grid((2, 3), tp=2)),
    ],
)
def test_an_encoder_of_its_own_sizes(vision: dict[str, Any], expected: Grid) -> None:
    layout = _layout(4, dict(tp=2, ranks=[0, 1, 2, 3]), vision=vision)
    assert layout.vision == layout.projector == expected
    assert not layout.decoupled


@pytest.mark.parametrize(
    ("llm", "vision", "expected"),
    [
        (dict(ranks=[0, 1, 2, 3]), {}, ((0, 1, 2, 3), (4, 5))),
        ({}, dict(ranks=[0, 3]), ((1, 2, 4, 5), (0, 3))),
        (dict(ranks=[2, 3, 4, 5], tp=2), dict(ranks=[0, 1], tp=2), ((2, 3, 4, 5), (0, 1))),
        ({}, dict(ranks=[0, 1, 2, 3, 4, 5]), (tuple(range(6)), tuple(range(6)))),
    ],
)
def test_what_one_component_leaves_out_is_the_others(
    llm: dict[str, Any], vision: dict[str, Any], expected: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    layout = _layout(6, llm, vision=vision)
    assert layout.vision is not None
    assert (layout.llm.ranks, layout.vision.ranks) == expected
    assert layout.decoupled == (not set(expected[0]) & set(expected[1]))


def test_a_projector_of_its_own_sizes_lies_where_the_encoder_is() -> None:
    layout = _layout(4, dict(tp=2), vision=dict(tp=2), projector=dict(tp=4, ranks=[0, 1, 2, 3]))
    assert layout.projector == Grid((0, 1, 2, 3), tp=4)
    decoupled = _layout(4, dict(ranks=[0, 1]), vision=dict(tp=2), projector=dict(dp=2))
    assert decoupled.projector == Grid((2, 3), tp=1)
    assert decoupled.vision == Grid((2, 3), tp=2)


def test_rows_are_cut_for_tensor_and_context_parallelism() -> None:
    sizes = [dict(), dict(tp=2), dict(cp=2), dict(tp=2, cp=4)]
    assert [_layout(8, llm).sequence_multiple for llm in sizes] == [1, 2, 4, 16]


def test_a_text_only_model_has_no_encoder() -> None:
    model = _model(dict(tp=2))
    model.vision = model.projector = None
    layout = Layout.from_model(model, 4)
    assert list(layout.grids()) == ["llm"]
    assert not layout.decoupled
    assert [layout.replicas(rank) for rank in range(4)] == [(0,), (0,), (1,), (1,)]
    model.llm.parallel.ranks = [0, 1]
    with pytest.raises(UserError, match=r"model\.llm\.parallel\.ranks leaves out ranks 2-3"):
        Layout.from_model(model, 4)


def test_a_description_tells_layouts_apart() -> None:
    """A resumed run compares it: the same layout keeps its random states."""
    described = [
        _layout(4, llm, vision=vision).describe()
        for llm, vision in [
            ({}, {}),
            (dict(tp=2), {}),
            (dict(tp=2, sequence_parallel=True), {}),
            (dict(tp=2), dict(tp=2)),
            (dict(cp=2), {}),
            (dict(ranks=[0, 1]), {}),
            (dict(ranks=[2, 3]), {}),
        ]
    ]
    assert all(described.count(one) == 1 for one in described)
    assert described[0] == _layout(4).describe()
    assert described[1]["llm"] == {"tp": 2, "cp": 1, "dp": 2, "pp": 1, "ranks": [0, 1, 2, 3]}


REFUSED: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    "llm ranks": (
        3,
        dict(tp=2),
        {},
        "llm.parallel tp=2 x pp=1 needs a multiple of 2 processes, not 3; nearest: launcher.nproc=2",
    ),
    "llm block": (1, dict(tp=2, pp=2), {}, "multiple of 4 processes, not 1; nearest: launcher.nproc=4"),
    "llm cp": (
        6,
        dict(cp=4),
        {},
        "tp=1 x pp=1 x cp=4 needs a multiple of 4 processes, not 6; nearest: launcher.nproc=4",
    ),
    "llm ranks, named": (
        4,
        dict(ranks=[0, 1, 2], tp=2),
        {},
        "not 3 for the LLM (4 processes, 1 of them the encoder's); nearest: 2 of them in model.llm.parallel.ranks",
    ),
    "llm dp": (4, dict(tp=2, dp=4), {}, "model.llm.parallel.dp=4 does not fit: 4 processes / (tp=2 x pp=1) leave dp=2"),
    "pp 0": (1, dict(pp=0), {}, "model.llm.parallel.pp=0 must be at least 1"),
    "cp 0": (1, dict(cp=0), {}, "model.llm.parallel.cp=0 must be at least 1"),
    "tp below 0": (1, dict(tp=-1), {}, "model.llm.parallel.tp=-1 must be at least 1"),
    "tp 0": (1, dict(tp=0), {}, "model.llm.parallel.tp=0 must be at least 1"),  # only null means 1
    "sp alone": (1, dict(sequence_parallel=True), {}, "sequence_parallel=true needs tp of at least 2"),
    "ep 0": (1, dict(ep=0), {}, "model.llm.parallel.ep=0 must be at least 1"),
    "ep": (
        6,
        dict(tp=2, ep=2),
        {},
        "ep=2 does not divide the cp=1 x dp=3 ranks that work on different tokens; nearest: ep=",
    ),
    "encoder ep": (2, {}, dict(vision=dict(ep=2)), "model.vision.parallel.ep=2 is for the LLM only"),
    "encoder pp": (
        2,
        dict(pp=2),
        dict(vision=dict(pp=2)),
        "model.vision.parallel.pp=2 is for the LLM only; use tp and dp",
    ),
    "encoder cp": (2, {}, dict(vision=dict(cp=2)), "model.vision.parallel.cp=2 is for the LLM only"),
    "encoder sp": (
        2,
        {},
        dict(vision=dict(sequence_parallel=True)),
        "model.vision.parallel.sequence_parallel=true is for",
    ),
    "projector pp": (2, {}, dict(projector=dict(pp=2)), "model.projector.parallel.pp=2 is for the LLM only"),
    "projector pp, own tp": (
        2,
        {},
        dict(projector=dict(pp=2, tp=2)),
        "model.projector.parallel.pp=2 is for the LLM only",
    ),
    "encoder tp": (
        6,
        {},
        dict(vision=dict(tp=4)),
        "model.vision.parallel.tp=4 does not divide the component's 6 ranks; nearest: tp=3 (legal: 1, 2, 3, 6)",
    ),
    "encoder tp 0": (2, {}, dict(vision=dict(tp=0)), "model.vision.parallel.tp=0 does not divide"),
    "encoder dp": (
        4,
        dict(ranks=[3]),
        dict(vision=dict(dp=2)),
        "model.vision.parallel.dp=2 does not divide the component's 3 ranks; nearest: dp=3 (legal: 1, 3)",
    ),
    "encoder tp x dp": (
        8,
        {},
        dict(vision=dict(tp=2, dp=2)),
        "model.vision.parallel tp=2 x dp=2 fills 4 ranks, not 8; nearest: dp=4, or tp=4",
    ),
    "projector tp": (4, {}, dict(projector=dict(tp=3)), "model.projector.parallel.tp=3 does not divide"),
    "projector elsewhere": (
        4,
        {},
        dict(projector=dict(ranks=[0, 1])),
        "model.projector.parallel.ranks=[0, 1] must be the encoder's (ranks 0-3); use null",
    ),
    "no such rank": (2, dict(ranks=[0, 5]), {}, "model.llm.parallel.ranks=[0, 5]: 5 is not a rank; allowed: 0 .. 1"),
    "rank below 0": (2, {}, dict(vision=dict(ranks=[-1])), "model.vision.parallel.ranks=[-1]: -1 is not a rank"),
    "rank twice": (2, {}, dict(vision=dict(ranks=[1, 1])), "model.vision.parallel.ranks=[1, 1] names a rank twice"),
    "no ranks": (2, {}, dict(vision=dict(ranks=[])), "model.vision.parallel.ranks=[] is empty; use null"),
    "ranks of nobody": (
        4,
        dict(ranks=[0]),
        dict(vision=dict(ranks=[1])),
        "no component is on ranks 2-3; add them to model.llm.parallel.ranks",
    ),
    "half on the LLM": (
        4,
        dict(ranks=[0, 1, 2]),
        dict(vision=dict(ranks=[2, 3])),
        "must lie within the LLM's ranks or share none with them; rank 2 in both, rank 3 in vision only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    world, llm, parts, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        _layout(world, llm, **parts)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2, "one mistake, one line"


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        _layout(4, dict(tp=2, ep=3, dp=3), vision=dict(tp=3, cp=2), projector=dict(cp=2))
    lines = str(caught.value).splitlines()
    assert lines[0] == "The layout does not fit:"
    assert len(lines) == 5


@given(world=st.integers(1, 24), tp=SIZES, cp=st.integers(1, 2), pp=SIZES, own=st.integers(0, 3))
def test_a_world_is_divided_or_one_that_can_be_is_named(world: int, tp: int, cp: int, pp: int, own: int) -> None:
    assume(own < world)
    model = _model(dict(tp=tp, cp=cp, pp=pp), vision=dict(ranks=list(range(own)) or None))
    _check_refusal_names_what_fits(
        model, world, r"nearest: launcher\.nproc=(\d+)", lambda found: (model, int(found.group(1)))
    )


@given(world=st.integers(1, 24), size=st.integers(-2, 30), axis=st.sampled_from(["tp", "dp"]))
def test_an_encoder_size_divides_or_one_that_does_is_named(world: int, size: int, axis: str) -> None:
    _check_refusal_names_what_fits(
        _model(vision={axis: size}),
        world,
        rf"nearest: {axis}=(\d+)",
        lambda found: (_model(vision={axis: int(found.group(1))}), world),
    )


@given(world=st.sampled_from([4, 6, 8, 12, 24]), data=st.data())
def test_encoder_sizes_that_do_not_fill_their_ranks_are_answered_with_two_that_do(
    world: int, data: st.DataObject
) -> None:
    tp, dp = (data.draw(st.sampled_from(divisors(world))) for _ in range(2))
    for axis, key in (("dp", r"nearest: dp=(\d+)"), ("tp", r"or tp=(\d+)")):
        wanted = dict(tp=tp, dp=dp)
        _check_refusal_names_what_fits(
            _model(vision=wanted),
            world,
            key,
            lambda found, axis=axis, wanted=wanted: (_model(vision={**wanted, axis: int(found.group(1))}), world),
        )


def _check_refusal_names_what_fits(
    model: ModelConfig, world: int, pattern: str, corrected: Callable[[re.Match[str]], tuple[ModelConfig, int]]
) -> None:
    refusal = ""
    try:
        Layout.from_model(model, world)
    except UserError as error:
        refusal = str(error)
    if refusal:
        found = re.search(pattern, refusal)
        assert found, refusal
        Layout.from_model(*corrected(found))
