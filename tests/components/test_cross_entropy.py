"""Cross-entropy over a divided vocabulary against torch's over the whole one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tests.components.cases import losses
from tests.support.ranks import RankPool

Pools = Callable[[int], RankPool]
VOCAB = 24

CASES = {
    "usual": 1.0,
    "large": 1e4,  # their exponentials overflow
    "equal": 0.0,
}


def _inputs(scale: float, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every token is a target once, so every rank has some that are on others."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(VOCAB, VOCAB, generator=generator)
    return logits.to(dtype), torch.randperm(VOCAB, generator=generator), torch.randn(VOCAB, generator=generator)


def _expected(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    whole = logits.double().requires_grad_()
    found = F.cross_entropy(whole, targets, reduction="none")
    (found @ weights.double()).backward()
    assert whole.grad is not None
    return found.detach(), whole.grad


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_whole_vocabulary(name: str, ranks: int, rank_pool: Pools) -> None:
    inputs = _inputs(CASES[name])
    value, gradient = _expected(*inputs)
    results = rank_pool(ranks).run(losses, *inputs)
    for found, _, unchanged in results:
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), value, rtol=1e-6, atol=1e-6)
        assert unchanged
    joined = torch.cat([part for _, part, _ in results], -1)
    assert torch.allclose(joined.double(), gradient, atol=1e-6)


def test_bf16_logits_lose_nothing_on_the_way(rank_pool: Pools) -> None:
    inputs = _inputs(3.0, torch.bfloat16)
    value, gradient = _expected(*inputs)
    results = rank_pool(2).run(losses, *inputs)
    assert all(torch.allclose(found.double(), value, atol=1e-5) for found, _, _ in results)
    joined = torch.cat([part for _, part, _ in results], -1)
    assert joined.dtype == torch.bfloat16
    assert torch.allclose(joined.double(), gradient, rtol=2**-8, atol=1e-7)  # rounded once


def test_a_rank_without_labelled_positions_takes_part(rank_pool: Pools) -> None:
    """Under context parallelism all of a micro-batch's labels may be on other ranks."""
    for found, gradient, _ in rank_pool(2).run(losses, *(part[:0] for part in _inputs(1.0))):
        assert found.shape == (0,)
        assert gradient.shape == (0, VOCAB // 2)
