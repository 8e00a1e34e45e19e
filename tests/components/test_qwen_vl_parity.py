"""Qwen2-VL and Qwen2.5-VL against transformers: features, logits, loss and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loongforge.config.schema import Config
from loongforge.data.batch import Batch
from tests.components.test_hf_parity import _ours, gradient_differences
from tests.support.qwen import any_size_batch, qwen_config, run_any_size
from tests.support.tiny import IMAGE_TOKEN

CASES: dict[str, dict[str, Any]] = {
    "qwen2": dict(kind="qwen2"),
    "qwen2.5": dict(kind="qwen2_5"),
    "qwen2, tied": dict(kind="qwen2", tie_embeddings=True),
    "qwen2.5, other sections": dict(kind="qwen2_5", mrope_section=[4, 1, 3]),
    "qwen2.5, larger windows": dict(kind="qwen2_5", vision=dict(window_size=84, full_attention_layers=[0, 2])),
}


def answer(theirs: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Their logits `[B, S, V]`."""
    grids = torch.tensor([shape.grid for shape in batch.shapes or ()])
    mask = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    kinds = (batch.tokens == IMAGE_TOKEN).int()
    return theirs(
        input_ids=batch.tokens,
        attention_mask=mask.long(),
        pixel_values=batch.images,
        image_grid_thw=grids,
        mm_token_type_ids=kinds,
    ).logits


def both(config: Config, groups: Any, seed: int = 0) -> tuple[Any, torch.nn.Module]:
    """(ours, theirs) with the same weights."""
    from tests.components.hf_qwen import qwen_vl

    theirs = qwen_vl(config.model, seed)
    return _ours(config, groups, theirs), theirs


def compare(ours: Any, theirs: torch.nn.Module, batch: Batch) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(largest difference of logits, our loss, their loss)."""
    hidden = run_any_size(ours, batch)
    samples, length = batch.tokens.shape
    logits = ours.llm.logits(hidden, torch.arange(samples * length)).view(length, samples, -1).transpose(0, 1)
    expected = answer(theirs, batch)
    real = torch.arange(length) < batch.lengths[:, None]
    loss = ours.losses(hidden, batch).mean()
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), batch.labels.flatten())
    return (logits - expected)[real].abs().max().item(), loss, expected_loss


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_whole_model_equals_transformers(name: str, seed: int, groups: Any) -> None:
    config = qwen_config(**CASES[name])
    ours, theirs = both(config, groups, seed)
    apart, loss, expected_loss = compare(ours, theirs, any_size_batch(seed=seed))
    assert apart < 1e-4
    assert abs(loss - expected_loss) < 1e-5
    loss.backward()
    expected_loss.backward()
    assert not gradient_differences(config, ours, theirs)
