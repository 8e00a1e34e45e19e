"""Layouts: which rank is where, and what is refused. No processes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loongforge.config.errors import UserError
from loongforge.config.schema import ModelConfig, ParallelConfig
from loongforge.parallel.layout import Coordinates, Layout
from tests.support.tiny import tiny_config

SIZES = st.integers(1, 6)


def _model(llm: dict[str, Any] | None = None, **parts: dict[str, Any]) -> ModelConfig:
    model = tiny_config(parallel=ParallelConfig(**(llm or {}))).model
    for name, options in parts.items():
        getattr(model, name).parallel = ParallelConfig(**options)
    return model


@given(tp=SIZES, dp=SIZES, pp=SIZES)
def test_ranks_fill_the_grid_tensor_parallel_first(tp: int, dp: int, pp: int) -> None:
    layout = Layout.from_model(_model(dict(tp=tp, pp=pp)), tp * dp * pp)
    assert (layout.tp, layout.dp, layout.pp) == (tp, dp, pp)
    places = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert places == [Coordinates(t, d, p) for p in range(pp) for d in range(dp) for t in range(tp)]


@given(tp=SIZES, dp=SIZES, pp=SIZES)
def test_encoders_live_on_the_first_stage(tp: int, dp: int, pp: int) -> None:
    layout = Layout(tp * dp * pp, tp, pp)
    for name in ("vision", "projector"):
        held = [rank for rank in range(layout.world_size) if layout.coordinates(rank).pp == 0]
        assert list(layout.ranks(name)) == held
    assert list(layout.ranks("llm")) == list(range(layout.world_size))


@given(world=st.integers(1, 64), tp=SIZES, pp=SIZES)
def test_a_world_is_divided_or_a_world_that_can_be_is_named(world: int, tp: int, pp: int) -> None:
    model = _model(dict(tp=tp, pp=pp))
    if world % (tp * pp) == 0:
        assert Layout.from_model(model, world).dp * tp * pp == world
        return
    with pytest.raises(UserError) as caught:
        Layout.from_model(model, world)
    nearest = int(str(caught.value).rsplit("launcher.nproc=", 1)[1])
    assert Layout.from_model(model, nearest).world_size == nearest


@pytest.mark.parametrize(
    ("world", "llm", "parts", "words"),
    [
        (3, dict(tp=2), {}, "tp=2 x pp=1 needs a multiple of 2 processes, not 3; nearest: launcher.nproc=2"),
        (1, dict(tp=2, pp=2), {}, "multiple of 4 processes, not 1; nearest: launcher.nproc=4"),
        (4, dict(tp=2, dp=4), {}, "model.llm.parallel.dp=4 does not fit: 4 processes / (tp=2 x pp=1) leave dp=2"),
        (1, dict(pp=0), {}, "model.llm.parallel.pp=0 must be at least 1"),
        (1, dict(tp=-1), {}, "model.llm.parallel.tp=-1 must be at least 1"),
        (1, dict(tp=0), {}, "model.llm.parallel.tp=0 must be at least 1"),  # only null means 1
        (1, dict(sequence_parallel=True), {}, "sequence_parallel=true needs tp of at least 2"),
        (2, dict(cp=2), {}, "model.llm.parallel.cp=2 is not available yet; allowed: 1"),
        (2, {}, dict(vision=dict(tp=2)), "model.vision.parallel.tp=2 differs from the LLM's tp=1"),
        (2, dict(tp=2), dict(projector=dict(dp=2)), "model.projector.parallel.dp=2 differs from the LLM's dp=1"),
        (2, dict(pp=2), dict(vision=dict(pp=2)), "model.vision.parallel: pp and sequence_parallel are for the LLM"),
    ],
)
def test_what_is_refused(world: int, llm: dict[str, Any], parts: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Layout.from_model(_model(llm, **parts), world)
    assert words in str(caught.value)


def test_everything_wrong_is_told_at_once() -> None:
    model = _model(dict(tp=2, ep=2), vision=dict(tp=4), projector=dict(cp=2))
    with pytest.raises(UserError) as caught:
        Layout.from_model(model, 3)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The layout does not fit:"
    assert len(lines) == 5


@pytest.mark.parametrize("parts", [{}, dict(vision=dict(tp=2, dp=2)), dict(projector=dict(tp=2))])
def test_encoders_may_name_the_sizes_that_they_have(parts: dict[str, Any]) -> None:
    assert Layout.from_model(_model(dict(tp=2, dp=2), **parts), 4) == Layout(4, tp=2)
