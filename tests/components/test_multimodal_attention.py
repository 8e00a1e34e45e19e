"""Multi-modal causal attention against a dense reference: forward, gradients, packed rows, context parallelism."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from loongforge.components.transformer import multimodal
from loongforge.components.transformer.sequence import SequenceView
from loongforge.parallel.routes import context_positions
from tests.components.cases import HEAD_DIM, attend, attention
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
LENGTH, HEADS, KV_HEADS = 32, 4, 2
KINDS = {
    "none": "t" * 32,
    "only": "i" * 32,
    "first": "iiiiiiii" + "t" * 24,
    "last": "t" * 24 + "iiiiiiii",
    "interleaved": "ttiiiiitttiitiiiittttttttiiitttt",
    "alternating": "it" * 16,
    "an image to the end of a document": "tttiiiittttttttttttttttttiittttt",
}
BORDERS = {"one document": None, "packed": [0, 1, 7, 19, 32]}


def _tensors(samples: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (HEADS * HEAD_DIM,)]
    return [torch.randn(LENGTH, samples, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _is_image(*names: str) -> torch.Tensor:
    return torch.tensor([[kind == "i" for kind in KINDS[name]] for name in names])


def _some(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Softmax over what is visible; zeros where nothing is."""
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.where(visible.any(-1, keepdim=True), weights.nan_to_num(), 0.0)


def reference(tensors: list[torch.Tensor], is_image: torch.Tensor, borders: list[int] | None) -> tuple[Any, list[Any]]:
    """The paper's definition with matrices of S x S."""
    *inputs, gradient = (tensor.clone() for tensor in tensors)
    for part in inputs:
        part.requires_grad_()
    outputs = []
    for start, end in pairwise(borders or [0, LENGTH]):
        query, key, value = (part[start:end] for part in inputs)
        key, value = (part.repeat_interleave(HEADS // KV_HEADS, 2) for part in (key, value))
        scores = torch.einsum("sbhd,tbhd->bhst", query, key) / HEAD_DIM**0.5
        image = is_image[:, None, None, start:end]
        earlier = torch.ones(end - start, end - start).tril().bool()
        weights = _some(scores, earlier & ~image) + _some(scores, earlier & image)
        output = torch.einsum("bhst,tbhd->sbhd", weights, value)
        outputs.append(torch.where(is_image.T[start:end, :, None, None], value, output))
    output = torch.cat(outputs).flatten(2)
    output.backward(gradient)
    return output.detach(), [part.grad for part in inputs]


def _whole(parts: list[Any]) -> torch.Tensor:
    found = torch.full((LENGTH, *parts[0].shape[1:]), torch.nan, dtype=parts[0].dtype)
    for rank, part in enumerate(parts):
        found[torch.from_numpy(context_positions(LENGTH, rank, len(parts)))] = part
    return found


def _largest_difference(ours: tuple[Any, list[Any]], theirs: tuple[Any, list[Any]]) -> float:
    pairs = zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("borders", BORDERS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_equals_the_definition(ranks: int, borders: str, rank_pool: Pools) -> None:
    batches = [tuple(KINDS)] if BORDERS[borders] is None else [(name,) for name in KINDS]
    for names in batches:
        tensors, is_image = _tensors(len(names)), _is_image(*names)
        results = rank_pool(ranks).run(attend, tensors, BORDERS[borders], is_image)
        found = _whole([r[0] for r in results]), [_whole([r[1][i] for r in results]) for i in range(3)]
        assert _largest_difference(found, reference(tensors, is_image, BORDERS[borders])) < 1e-12, names


def _once(tensors: list[torch.Tensor], is_image: torch.Tensor | None, groups: Any) -> tuple[torch.Tensor, list[Any]]:
    *inputs, gradient = (tensor.clone() for tensor in tensors)
    for part in inputs:
        part.requires_grad_()
    view = SequenceView(torch.arange(LENGTH), LENGTH, is_image=is_image)
    output = attention(groups.llm.cp)(*inputs, view)
    output.backward(gradient)
    return output.detach(), [part.grad for part in inputs]


def test_without_images_it_is_causal_attention(groups: Any) -> None:
    tensors = _tensors(2)
    without = _once(tensors, None, groups)
    assert _largest_difference(_once(tensors, _is_image("none", "none"), groups), without) < 1e-12
    assert _largest_difference(_once(tensors, _is_image("none", "first"), groups), without) > 0.1


def test_images_are_not_seen_by_the_text_softmax(groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One softmax over both kinds, as plain attention has, would be noticed."""
    tensors, is_image = _tensors(1), _is_image("interleaved")
    expected = reference(tensors, is_image, None)

    def faulty(plain: Any, query: Any, key: Any, value: Any, *_: Any) -> torch.Tensor:
        return torch.zeros_like(query)

    monkeypatch.setattr(multimodal, "_to_images", faulty)
    assert _largest_difference(_once(tensors, is_image, groups), expected) > 0.1
