"""Windows of micro-batches: their image rows reach the places that wait for them, and their gradients return."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loongforge.config.schema import ParallelConfig
from loongforge.model.checks import window_size
from loongforge.model.windows import ReplicaImages, Window
from loongforge.parallel.layout import Layout
from loongforge.parallel.routes import ImagePlan, Transfer, context_positions
from tests.support.tiny import IMAGE_TOKEN, tiny_config

ROWS_PER_IMAGE = 3
LENGTH = 32


@dataclass
class _Inputs:
    """A micro-batch; pixel `[0, 0, 0]` of an image is its number."""

    tokens: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    cu_seqlens: torch.Tensor | None = None
    image_plan: ImagePlan | None = None
    shapes: Any = None


def _layout(world: int, llm: dict[str, Any], **parts: dict[str, Any]) -> Layout:
    model = tiny_config(parallel=ParallelConfig(**llm)).model
    for name, options in parts.items():
        getattr(model, name).parallel = ParallelConfig(**options)
    return Layout.from_model(model, world)


LAYOUTS = {
    "one process": _layout(1, {}),
    "dp": _layout(4, {}),
    "tp, an encoder each": _layout(4, dict(tp=2)),
    "tp and sp": _layout(4, dict(tp=4, sequence_parallel=True)),
    "cp": _layout(4, dict(cp=2)),
    "cp, tp and sp": _layout(8, dict(cp=2, tp=4, sequence_parallel=True), vision=dict(tp=2)),
    "pp": _layout(8, dict(tp=2, pp=2, sequence_parallel=True)),
    "encoder of one replica": _layout(4, {}, vision=dict(tp=4)),
    "3 encoders for 2": _layout(6, dict(tp=3), vision=dict(tp=2)),
    "2 encoders for 3": _layout(6, dict(tp=2), vision=dict(tp=3)),
    "encoder on some ranks": _layout(4, dict(ranks=[0, 1, 2, 3]), vision=dict(ranks=[1, 2])),
    "decoupled": _layout(5, dict(pp=2, ranks=[0, 1, 2, 3]), vision=dict(ranks=[4])),
    "decoupled, cp and sp": _layout(6, dict(cp=2, tp=2, sequence_parallel=True), vision=dict(ranks=[0, 1], tp=2)),
    "projector of its own": _layout(4, dict(tp=2), vision=dict(tp=4), projector=dict(tp=2)),
    "projector, decoupled": _layout(8, dict(pp=2), vision=dict(ranks=[0, 1, 2, 3], tp=2), projector=dict(tp=1)),
}


@st.composite
def windows(draw: st.DrawFn) -> list[_Inputs]:
    """Micro-batches of up to three rows; a row has none to three images, anywhere."""
    batches, number = [], 0
    samples = draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 3))):
        tokens = torch.full((samples, LENGTH), 9)
        here = 0
        for row in tokens:
            at = 0
            for _ in range(draw(st.integers(0, 3))):
                at += draw(st.integers(0, 6))
                row[at : at + ROWS_PER_IMAGE] = IMAGE_TOKEN
                at += ROWS_PER_IMAGE
                here += 1
        images = torch.zeros(here, 3, 2, 2)
        images[:, 0, 0, 0] = torch.arange(number, number + here)
        batches.append(_Inputs(tokens, images))
        number += here
    return batches


def planned(batches: list[_Inputs], layout: Layout, seed: int) -> list[_Inputs]:
    """The same with an encoder replica drawn for each image; seed 0: as they are, in even shares."""
    if seed == 0 or layout.vision is None:
        return batches
    draw = np.random.default_rng(seed)
    plans = [(len(b.images), draw.integers(0, layout.vision.dp, len(b.images))) for b in batches]
    return [
        replace(batch, image_plan=ImagePlan(total, np.arange(total), encoders))
        for batch, (total, encoders) in zip(batches, plans, strict=True)
    ]


def read_by(rank: int, layout: Layout, batch: _Inputs) -> _Inputs:
    """What a rank has read of a planned micro-batch: the pixels that it encodes."""
    plan = batch.image_plan
    place = layout.vision.place(rank) if layout.vision is not None else None
    if plan is None or plan.encoders is None or place is None:
        return batch
    held = np.flatnonzero(plan.encoders == place.dp)
    return replace(batch, images=batch.images[held], image_plan=replace(plan, held=held))


def _row_ids(batches: list[_Inputs]) -> list[np.ndarray]:
    """Per micro-batch `[B, S]`: the number of the image row at a position, counted by hand; -1 elsewhere."""
    found, number = [], 0
    for batch in batches:
        ids = np.full(batch.tokens.shape, -1)
        for sample, row in enumerate(batch.tokens.tolist()):
            for position, token in enumerate(row):
                if token == IMAGE_TOKEN:
                    ids[sample, position] = number
                    number += 1
        found.append(ids)
    return found


def _expected(layout: Layout, rank: int, ids: np.ndarray) -> list[int]:
    """Rows that a rank merges into a micro-batch, in the order of its samples and positions."""
    grid = layout.llm
    place = grid.place(rank)
    assert place is not None
    positions = context_positions(LENGTH, place.cp, grid.cp)
    if layout.sequence_parallel:
        positions = np.split(positions, grid.tp)[place.tp]
    return [int(ids[sample, p]) for sample in range(len(ids)) for p in positions if ids[sample, p] >= 0]


def _carry(transfers: list[Transfer], held: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Values that arrive; every place is filled, and once."""
    places: dict[int, dict[int, float]] = {}
    for transfer in transfers:
        for source, target in zip(transfer.source_rows, transfer.target_rows, strict=True):
            assert target not in places.setdefault(transfer.target, {})
            places[transfer.target][target] = held[transfer.source][source]
    for found in places.values():
        assert sorted(found) == list(range(len(found)))
    return {rank: np.array([found[i] for i in range(len(found))]) for rank, found in places.items()}


@pytest.mark.parametrize("name", LAYOUTS)
@given(batches=windows(), seed=st.integers(0, 3))
@settings(max_examples=30)
def test_rows_reach_the_ranks_that_merge_them_and_their_gradients_return(
    name: str, batches: list[_Inputs], seed: int
) -> None:
    layout = LAYOUTS[name]
    batches = planned(batches, layout, seed)
    ids = _row_ids(batches)
    total = sum(int((part >= 0).sum()) for part in ids)
    for replica in range(layout.dp):
        images = ReplicaImages(layout, replica, batches, IMAGE_TOKEN)
        assert (images.num_rows, images.num_images) == (total, total // ROWS_PER_IMAGE)
        encoded = images.encoded("projector")
        made = {
            rank: np.array([image * ROWS_PER_IMAGE + row for image in share for row in range(ROWS_PER_IMAGE)], float)
            for rank, share in encoded.items()
        }
        arrived = _carry(images.to_llm, made)
        merging = layout.llm.select(pp=0, dp=replica)
        assert set(arrived) <= set(merging)
        for rank in merging:
            wanted = [_expected(layout, rank, part) for part in ids]
            assert [part.tolist() for part in images.merged(rank)] == wanted
            assert arrived.get(rank, np.empty(0)).tolist() == [row for part in wanted for row in part]
        gradients = {rank: 0.5 + rows for rank, rows in arrived.items()}  # every holder of a row has the same
        returned = _carry(images.to_encoder, gradients)
        for rank, rows in made.items():
            assert returned.get(rank, np.empty(0)).tolist() == (0.5 + rows).tolist()


@pytest.mark.parametrize("name", ["projector of its own", "projector, decoupled", "3 encoders for 2"])
@given(batches=windows())
@settings(max_examples=30)
def test_features_of_whole_images_reach_the_projector_and_return(name: str, batches: list[_Inputs]) -> None:
    layout = LAYOUTS[name]
    for replica in range(layout.dp):
        images = ReplicaImages(layout, replica, batches, IMAGE_TOKEN)
        ends = [images.encoded(component) for component in ("vision", "projector")]
        for back in (False, True):
            source, target = reversed(ends) if back else ends
            arrived = _carry(
                images.between_encoders(back=back), {rank: np.array(share, float) for rank, share in source.items()}
            )
            assert arrived == {} or max(map(len, arrived.values())) <= images.num_images
            for rank, share in target.items():
                assert arrived.get(rank, np.empty(0)).tolist() == list(share)


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
@settings(max_examples=15)
def test_the_images_of_a_window_are_all_encoded(name: str, data: st.DataObject) -> None:
    """By each tensor-parallel group as a whole, of every LLM replica that it serves, or by plan."""
    layout, seed = LAYOUTS[name], data.draw(st.integers(0, 3))
    assert layout.vision is not None
    batches = {
        replica: planned(data.draw(windows()), layout, seed + replica * (seed > 0)) for replica in range(layout.dp)
    }
    seen: dict[int, list[float]] = {replica: [] for replica in batches}
    for encoder in range(layout.vision.dp):
        pixels = []
        for rank in layout.vision.select(dp=encoder):
            wanted = range(layout.dp) if seed else layout.replicas(rank)
            mine = {replica: [read_by(rank, layout, batch) for batch in batches[replica]] for replica in wanted}
            parts = Window(layout, mine, IMAGE_TOKEN).pixels(rank)
            assert all(len(part) for part in parts.values())
            pixels.append({replica: part[:, 0, 0, 0].tolist() for replica, part in parts.items()})
        assert all(part == pixels[0] for part in pixels)
        for replica, numbers in pixels[0].items():
            seen[replica] += numbers
    for replica, numbers in seen.items():
        assert sorted(numbers) == list(range(sum(len(batch.images) for batch in batches[replica])))


def test_images_without_a_place_are_a_mistake() -> None:
    batch = _Inputs(torch.full((1, LENGTH), 9), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match="2 images, but no image token"):
        _ = ReplicaImages(LAYOUTS["one process"], 0, [batch], IMAGE_TOKEN).to_llm


@pytest.mark.parametrize(
    ("layout", "wanted", "micro_batches", "samples", "expected"),
    [
        ("one process", None, 8, 2, 1),
        ("dp", None, 8, 2, 1),
        ("tp, an encoder each", None, 8, 2, 1),  # two siblings, two samples
        ("tp, an encoder each", None, 8, 1, 2),
        ("tp and sp", None, 8, 1, 4),
        ("tp and sp", None, 8, 3, 2),
        ("tp and sp", None, 3, 1, 3),  # there are no more
        ("encoder of one replica", None, 8, 1, 1),
        ("3 encoders for 2", None, 8, 1, 2),
        ("pp", None, 8, 2, 8),  # the pipeline is drained once a step
        ("decoupled", None, 8, 2, 1),  # it need not be: encoders have ranks of their own
        ("pp", 2, 8, 2, 2),
        ("dp", 100, 8, 2, 8),
    ],
)
def test_window_size(layout: str, wanted: int | None, micro_batches: int, samples: int, expected: int) -> None:
    assert window_size(LAYOUTS[layout], wanted, micro_batches, samples) == expected


def test_a_text_only_model_has_windows_of_one() -> None:
    layout = Layout(2, LAYOUTS["one process"].llm)
    assert window_size(layout, None, 8, 2) == 1
