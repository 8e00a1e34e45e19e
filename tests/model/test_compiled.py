"""Compiled layers compute what plain ones do, through the compiler's front end (`aot_eager` generates no code)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from loongforge.data.batch import Batch
from tests.support.tiny import IMAGE_TOKEN, global_batch, tiny_config


def _packed(seed: int, documents: list[int]) -> Batch:
    """One row of 64 tokens, cut into documents."""
    whole = global_batch(seed)
    borders = torch.tensor([0, *documents], dtype=torch.int32).cumsum(0).int()
    tokens, labels = (x[:4].reshape(1, -1) for x in (whole.tokens, whole.labels))
    return replace(
        whole, tokens=tokens, labels=labels, images=whole.images[:2], lengths=torch.tensor([64]), cu_seqlens=borders
    )


def _learn(groups: Any, *, compiled: bool) -> list[tuple[float, list[torch.Tensor]]]:
    """Loss and gradients of each row."""
    from loongforge.model.assembly import build_model
    from loongforge.model.compiled import compile_layers
    from loongforge.model.execution import Runner

    config = tiny_config(num_layers=1, vision_changes={"num_layers": 2})
    model = build_model(config, groups, image_token=IMAGE_TOKEN).train()
    names = list(model.state_dict())
    if compiled:
        assert compile_layers(model, "aot_eager") == 2
    runner, found = Runner(model, groups), []
    for seed, documents in enumerate(([64], [16, 5, 43], [1, 2, 3, 58])):
        model.zero_grad()
        loss = runner.train({0: [_packed(seed, documents)]}, 12).item()
        found.append((loss, [param.grad.clone() for param in model.parameters() if param.grad is not None]))
    assert list(model.state_dict()) == names
    return found


def test_losses_and_gradients_are_those_of_plain_layers(groups: Any) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = _learn(groups, compiled=False), _learn(groups, compiled=True)
    assert counters["stats"]["unique_graphs"] > 2, "nothing was compiled"
    for (loss, grads), (other, others) in zip(plain, compiled, strict=True):
        assert abs(loss - other) < 1e-5
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(grads, others, strict=True))
    assert counters["stats"]["unique_graphs"] < 12, "documents of other lengths were compiled anew"
