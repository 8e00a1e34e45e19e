"""The CPU backend: an AdamW that equals torch's, and a layer that nobody but megatron-core sees."""

from __future__ import annotations

import sys

import pytest
import torch
from loongforge_backends.cpu import compat

from loongforge.config.errors import UserError
from loongforge.kernels.adam import FusedAdam
from loongforge.kernels.backend import installed, select

select("auto").activate()


def _pair(shapes: list[tuple[int, ...]]) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    return mine, [torch.nn.Parameter(param.detach().clone()) for param in mine]


@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_equals_torch(decoupled: bool) -> None:
    mine, theirs = _pair([(17, 5), (3,), (33, 2, 4)])
    options = dict(lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    ours = FusedAdam(mine, adam_w_mode=decoupled, **options)  # type: ignore[arg-type]
    reference = (torch.optim.AdamW if decoupled else torch.optim.Adam)(theirs, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours.step()
        reference.step()
    assert max((a - b).abs().max().item() for a, b in zip(mine, theirs, strict=True)) < 1e-6
    assert ours.param_groups[0]["step"] == 20
    assert all(set(ours.state[param]) == {"exp_avg", "exp_avg_sq"} for param in mine)


def test_only_megatron_core_sees_the_stub() -> None:
    import megatron.core.parallel_state as megatron_module

    assert not torch.cuda.is_available()
    assert torch.cuda.current_device.__module__ == "torch.cuda"
    assert megatron_module.torch.cuda.current_device() == "cpu"  # type: ignore[attr-defined]
    assert torch.zeros(1).type() == "torch.FloatTensor"


def test_activation_is_idempotent() -> None:
    before = len(sys.meta_path)
    assert compat.install()
    assert len(sys.meta_path) == before


def test_backends_are_found_and_named() -> None:
    assert "cpu" in installed()
    assert select("cpu").dist_backend == "gloo"
    with pytest.raises(UserError, match=r"'cpux' is not installed.*Did you mean 'cpu'"):
        select("cpux")
