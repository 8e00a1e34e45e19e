"""Output layer and loss over a divided vocabulary: every implementation on two ranks equals one process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from loongforge.kernels import linear_cross_entropy, reference
from loongforge.kernels.cases import randn
from tests.support.ranks import RankPool

T, H, V = 6, 8, 1400
WAYS = {"reference": reference.linear_cross_entropy, "torch": linear_cross_entropy.linear_cross_entropy}
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _run(way: str, part: slice, group: object, dtype: torch.dtype, tokens: int) -> Found:
    hidden, weight = randn(T, H)[:tokens].to(dtype).requires_grad_(), randn(V, H)[part].to(dtype).requires_grad_()
    targets = torch.tensor([0, 699, 700, 1399, 5, 1000])[:tokens]
    losses = WAYS[way](hidden, weight, targets, group)  # type: ignore[arg-type]
    (losses * torch.arange(1, tokens + 1)).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return losses.detach(), hidden.grad, weight.grad


def _rank(way: str, dtype: torch.dtype, tokens: int) -> Found:
    dist.init_process_group("gloo")
    half = V // 2
    return _run(way, slice(dist.get_rank() * half, (dist.get_rank() + 1) * half), dist.group.WORLD, dtype, tokens)


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
