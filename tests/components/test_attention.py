"""Core attention over context-parallel ranks and packed documents, against plain attention document by document."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loongforge.components.transformer.sequence import SequenceView
from loongforge.parallel.routes import context_positions
from tests.components.cases import HEAD_DIM, attend, attention, gather
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
LENGTH, HEADS, KV_HEADS = 32, 4, 2
DOCUMENTS = {
    "one": [0, 32],
    "two": [0, 16, 32],
    "uneven": [0, 1, 6, 7, 21, 32],  # of one token, within a chunk, over many
    "of one token each": list(range(33)),
}


def _tensors(samples: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (HEADS * HEAD_DIM,)]
    return [torch.randn(LENGTH, samples, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _reference(tensors: list[torch.Tensor], borders: list[int], window: int = LENGTH) -> tuple[torch.Tensor, list[Any]]:
    """Each document on its own: softmax of the scores of earlier positions, the latest `window` of them."""
    *inputs, gradient = (tensor.clone() for tensor in tensors)
    for part in inputs:
        part.requires_grad_()
    outputs = []
    for start, end in pairwise(borders):
        query, key, value = (part[start:end] for part in inputs)
        key, value = (part.repeat_interleave(HEADS // KV_HEADS, 2) for part in (key, value))
        scores = torch.einsum("sbhd,tbhd->bhst", query, key) / HEAD_DIM**0.5
        later = torch.ones(end - start, end - start).triu(1).bool()
        early = torch.ones(end - start, end - start).tril(-window).bool()
        weights = scores.masked_fill(later | early, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("bhst,tbhd->sbhd", weights, value))
    output = torch.cat(outputs).flatten(2)
    output.backward(gradient)
    return output.detach(), [part.grad for part in inputs]


def _whole(parts: list[Any]) -> torch.Tensor:
    """Rows from the ranks' positions."""
    found = torch.full((LENGTH, *parts[0].shape[1:]), torch.nan, dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        found[torch.from_numpy(context_positions(LENGTH, rank, len(parts)))] = part
    return found


def _assert_same(found: tuple[torch.Tensor, list[Any]], expected: tuple[torch.Tensor, list[Any]]) -> None:
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    for name, ours, theirs in zip(names, (found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12), name


@pytest.mark.parametrize("name", [None, *DOCUMENTS])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_attention_equals_that_of_each_document_alone(ranks: int, name: str | None, rank_pool: Pools) -> None:
    borders = None if name is None else DOCUMENTS[name]
    tensors = _tensors(3 if borders is None else 1)
    results = rank_pool(ranks).run(attend, tensors, borders)
    gradients = [_whole([result[1][i] for result in results]) for i in range(3)]
    found = _whole([result[0] for result in results]), gradients
    _assert_same(found, _reference(tensors, borders or [0, LENGTH]))


@pytest.mark.parametrize("window", [1, 3, 13])
@pytest.mark.parametrize("name", [None, "uneven"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_window_ends_the_view_back(ranks: int, name: str | None, window: int, rank_pool: Pools) -> None:
    borders = None if name is None else DOCUMENTS[name]
    tensors = _tensors(3 if borders is None else 1)
    results = rank_pool(ranks).run(attend, tensors, borders, None, window)
    gradients = [_whole([result[1][i] for result in results]) for i in range(3)]
    found = _whole([result[0] for result in results]), gradients
    _assert_same(found, _reference(tensors, borders or [0, LENGTH], window))
    wrong = _reference(tensors, borders or [0, LENGTH], window + 1)
    assert not torch.allclose(found[0], wrong[0], atol=1e-3)


@pytest.mark.parametrize("ranks", [2, 4])
def test_gathered_chunks_are_in_order_and_gradients_add_up(ranks: int, rank_pool: Pools) -> None:
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(LENGTH, 3, generator=generator)
    gradients = torch.randn(ranks, LENGTH, 3, generator=generator)
    results = rank_pool(ranks).run(gather, whole, gradients)
    assert all(torch.equal(gathered, whole) for gathered, _ in results)
    assert torch.allclose(_whole([gradient for _, gradient in results]), gradients.sum(0), atol=1e-6)


def test_without_a_view_a_row_is_one_document(groups: Any) -> None:
    *inputs, _ = _tensors(2)
    expected, _ = _reference(_tensors(2), [0, LENGTH])
    assert torch.allclose(attention(groups.llm.cp)(*inputs, None), expected, atol=1e-12)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6), cp=st.sampled_from([1, 2, 4]), data=st.data())
def test_a_view_knows_documents_and_what_may_be_seen(sizes: list[int], cp: int, data: st.DataObject) -> None:
    sizes = [*sizes, -sum(sizes) % (2 * cp) or 2 * cp]  # so that chunks are of one size
    document = [number for number, size in enumerate(sizes) for _ in range(size)]
    place = [i for size in sizes for i in range(size)]
    borders = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    positions = torch.from_numpy(context_positions(len(place), data.draw(st.integers(0, cp - 1)), cp))
    view = SequenceView(positions, len(place), torch.tensor(borders, dtype=torch.int32))
    assert view.documents is not None
    assert view.documents.tolist() == document
    assert view.within_document.tolist() == [place[position] for position in positions]
    part = slice(data.draw(st.integers(0, len(positions) - 1)), None)
    window = data.draw(st.integers(1, 8))
    assert view.mask(part, window).tolist() == [
        [j <= i < j + window and document[i] == document[j] for j in range(len(place))]
        for i in positions[part].tolist()
    ]
    assert view.mask(part).tolist() == [
        [j <= i and document[i] == document[j] for j in range(len(place))] for i in positions[part].tolist()
    ]
    whole = SequenceView(positions, len(place))
    assert torch.equal(whole.within_document, positions)
    assert whole.mask(part).tolist() == [[j <= i for j in range(len(place))] for i in positions[part].tolist()]
