"""Output layer and loss over a divided vocabulary: every implementation on two ranks equals one process."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from loongforge.kernels import linear_cross_entropy, reference
from loongforge.kernels.backend import select
from loongforge.kernels.cases import randn
from tests.support.ranks import RankPool

select("cpu").activate()  # before megatron-core is imported

from loongforge.components.llm.llama.module import LlamaModel  # noqa: E402

T, H, V = 6, 8, 1400
WAYS = {"reference": reference.linear_cross_entropy, "torch": linear_cross_entropy.linear_cross_entropy}
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _run(way: str, part: slice, group: object, dtype: torch.dtype, tokens: int, vocab_size: int | None = None) -> Found:
    hidden, weight = randn(T, H)[:tokens].to(dtype).requires_grad_(), randn(V, H)[part].to(dtype).requires_grad_()
    targets = torch.tensor([0, 699, 700, 1399, 5, 1000])[:tokens]
    losses = WAYS[way](hidden, weight, targets, group, vocab_size=vocab_size)  # type: ignore[arg-type]
    (losses * torch.arange(1, tokens + 1)).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return losses.detach(), hidden.grad, weight.grad


def _rank(way: str, dtype: torch.dtype, tokens: int, vocab_size: int | None = None) -> Found:
    dist.init_process_group("gloo")
    half = V // 2
    part = slice(dist.get_rank() * half, (dist.get_rank() + 1) * half)
    return _run(way, part, dist.group.WORLD, dtype, tokens, vocab_size)


@pytest.mark.parametrize("tokens", [T, 0])
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_equal_one(rank_pool: Callable[[int], RankPool], way: str, tokens: int) -> None:
    dtype = torch.float32 if way == "reference" else torch.float64
    losses, for_hidden, for_weight = _run("reference", slice(None), None, torch.float64, tokens)
    found = rank_pool(2).run(_rank, way, dtype, tokens)
    tolerance = 1e-5 if way == "reference" else 1e-12
    for rank_losses, rank_hidden, _ in found:
        assert torch.allclose(rank_losses.double(), losses, atol=tolerance)
        assert torch.allclose(rank_hidden.double(), for_hidden, atol=tolerance)
    assert torch.allclose(torch.cat([part for *_, part in found]).double(), for_weight, atol=tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("vocab_size", [V - 1, V // 2 + 1, V // 2])
def test_padded_rows_take_no_part(rank_pool: Callable[[int], RankPool], way: str, vocab_size: int) -> None:
    """On two ranks, of which the second has padding at its end, but for one row, or nothing else."""
    tokens = 2  # their targets are on the first rank
    losses, for_hidden, for_weight = _run("reference", slice(vocab_size), None, torch.float64, tokens)
    for found in (
        [_run(way, slice(None), None, torch.float64, tokens, vocab_size)],
        rank_pool(2).run(_rank, way, torch.float32 if way == "reference" else torch.float64, tokens, vocab_size),
    ):
        for rank_losses, rank_hidden, _ in found:
            assert torch.allclose(rank_losses.double(), losses, atol=1e-5)
            assert torch.allclose(rank_hidden.double(), for_hidden, atol=1e-5)
        rows = torch.cat([part for *_, part in found]).double()
        assert torch.allclose(rows[:vocab_size], for_weight, atol=1e-5)
        assert not rows[vocab_size:].any()


def test_a_padded_model_never_has_its_logits() -> None:
    """Its loss is that of the op over the vocabulary alone."""
    weight, hidden, targets = randn(12, H).float(), randn(3, 1, H).float(), torch.tensor([4, 0, 10])
    model = SimpleNamespace(
        _gather_parts=lambda x: x,
        share_embeddings_and_output_weights=False,
        output_layer=SimpleNamespace(weight=weight),
        tp_group=None,
        vocab_size=11,
    )
    found = LlamaModel.losses(model, hidden, torch.arange(3), targets)  # type: ignore[arg-type]
    assert torch.allclose(found, reference.linear_cross_entropy(hidden[:, 0], weight[:11], targets), atol=1e-5)
