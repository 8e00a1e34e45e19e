"""Qwen2-VL and Qwen2.5-VL against transformers: features, logits, loss and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loongforge.components.transformer import attention
from loongforge.config.schema import Config
from loongforge.data.batch import Batch
from loongforge.model.assembly import build_model
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


VIDEO_TOKEN = 2
VIDEOS = ((3, (3, 4, 6, 2.0), 5), (9,), (2, (1, 2, 2), 1, (2, 2, 6, 1.3333), 3, (4, 4, 4, 0.7), 6), ((2, 4, 4, 5.0), 4))


def answer(theirs: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Their logits `[B, S, V]`; images of several steps in time are videos to them."""
    assert batch.shapes is not None
    mask = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    tokens, flat = batch.tokens.clone(), batch.tokens.flatten()
    owner = torch.repeat_interleave(torch.tensor([shape.tokens for shape in batch.shapes]))
    is_video = torch.tensor([shape.grid[0] > 1 for shape in batch.shapes])
    places = (flat == IMAGE_TOKEN).nonzero().squeeze(1)
    tokens.view(-1)[places[is_video[owner]]] = VIDEO_TOKEN
    kinds = (tokens == IMAGE_TOKEN).int() + 2 * (tokens == VIDEO_TOKEN).int() * (batch.tokens == IMAGE_TOKEN).int()
    pixels = batch.images.split([shape.pixels for shape in batch.shapes])
    inputs: dict[str, Any] = {}
    for name, chosen in (("pixel_values", ~is_video), ("pixel_values_videos", is_video)):
        shapes = [shape for shape, take in zip(batch.shapes, chosen.tolist(), strict=True) if take]
        if shapes:
            inputs[name] = torch.cat([part for part, take in zip(pixels, chosen.tolist(), strict=True) if take])
            grid = "image_grid_thw" if name == "pixel_values" else "video_grid_thw"
            inputs[grid] = torch.tensor([shape.grid for shape in shapes])
            if grid == "video_grid_thw" and hasattr(theirs.config.vision_config, "tokens_per_second"):
                rate = theirs.config.vision_config.tokens_per_second
                inputs["second_per_grid_ts"] = torch.tensor([shape.interval / rate for shape in shapes])
    return theirs(input_ids=tokens, attention_mask=mask.long(), mm_token_type_ids=kinds, **inputs).logits


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5"])
def test_the_encoder_turns_heads_in_float32(kind: str, groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the type of its layers, as theirs does."""
    config = qwen_config(kind)
    config.trainer.precision = "bf16"
    vision, batch, seen = build_model(config, groups, image_token=IMAGE_TOKEN).vision, any_size_batch(), set()
    rotary = attention.ops.rotary

    def watched(*tensors: torch.Tensor) -> torch.Tensor:
        seen.update(tensor.dtype for tensor in tensors)
        return rotary(*tensors)

    monkeypatch.setattr(attention.ops, "rotary", watched)
    assert vision is not None
    features = vision(batch.images.bfloat16(), batch.shapes)
    assert (features.dtype, seen) == (torch.bfloat16, {torch.float32})


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


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5"])
def test_videos_equal_transformers(kind: str, groups: Any) -> None:
    config = qwen_config(kind)
    samples = VIDEOS
    if kind == "qwen2":  # it does not know how fast a video is
        samples = tuple(tuple(p[:3] if isinstance(p, tuple) else p for p in sample) for sample in VIDEOS)
    ours, theirs = both(config, groups)
    apart, loss, expected_loss = compare(ours, theirs, any_size_batch(samples))
    assert apart < 1e-4
    assert abs(loss - expected_loss) < 1e-5
    loss.backward()
    expected_loss.backward()
    assert not gradient_differences(config, ours, theirs)


@pytest.mark.parametrize("fault", ["sections", "interval", "windows"])
def test_a_fault_is_seen(fault: str, groups: Any) -> None:
    """A permuted section, frames at another distance, windows in all layers."""
    config = qwen_config("qwen2_5")
    ours, theirs = both(config, groups)
    batch = any_size_batch(VIDEOS)
    if fault == "sections":
        ours.llm.rope_axes = ours.llm.rope_axes.flip(0)
    if fault == "windows":
        ours.vision.decoder.layers[1].self_attention.core_attention.windowed = True
    expected = compare(ours, theirs, batch)[0]
    if fault == "interval":
        assert expected < 1e-4
        other = tuple(tuple((*p[:3], 1.0) if isinstance(p, tuple) else p for p in sample) for sample in VIDEOS)
        batch = any_size_batch(other)
        moved = any_size_batch(VIDEOS)
        with torch.no_grad():
            expected = (run_any_size(ours, batch) - run_any_size(ours, moved)).abs().max().item()
    assert expected > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5"])
def test_packed_documents_begin_anew(kind: str, groups: Any) -> None:
    from loongforge.training.verify.synthetic import packed

    ours, _ = both(qwen_config(kind), groups)
    batch = any_size_batch(VIDEOS)
    apart, together = run_any_size(ours, batch).transpose(0, 1), run_any_size(ours, packed(batch))[:, 0]
    rows = torch.cat([row[:length] for row, length in zip(apart, batch.lengths.tolist(), strict=True)])
    assert (rows - together[: len(rows)]).abs().max() < 1e-4
