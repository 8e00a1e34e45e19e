"""FLOPs of steps against torch's own counter, which sees every product that is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from loongforge.components.products import COUNTS
from loongforge.config.schema import Config, LoraConfig
from loongforge.data.batch import Batch
from loongforge.model.flops import image_tokens
from loongforge.model.work import FlopCounter, count_work, find_adapters
from tests.support.qwen import any_size_batch, qwen_config
from tests.support.tiny import IMAGE_TOKEN, global_batch, micro_batches, tiny_config


def _counted(config: Config, batches: Sequence[Batch]) -> dict[str, int]:
    lengths = [batch.lengths for batch in batches]
    return dict(zip(COUNTS, count_work(batches, lengths, config.model, IMAGE_TOKEN), strict=True))


def _run(config: Config, groups: Any, batches: Sequence[Batch]) -> tuple[float, Any]:
    """FLOPs that torch counts in a training step, and our counter for the same model."""
    from loongforge.model.assembly import build_model
    from loongforge.model.execution import Runner

    runner = Runner(build_model(config, groups, image_token=IMAGE_TOKEN).train(), groups)
    labels = sum(int((batch.labels >= 0).sum()) for batch in batches)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as seen:  # others are not all known to it
        runner.train({0: list(batches)}, labels)
    return seen.get_total_flops(), FlopCounter(config, find_adapters(config, runner.model))


def _documents(batch: Batch) -> np.ndarray:
    if batch.cu_seqlens is not None:
        return batch.cu_seqlens.diff().numpy()
    return np.full(len(batch.tokens), batch.tokens.shape[1])


def _as_computed(config: Config, batches: Sequence[Batch]) -> dict[str, int]:
    """Plain attention computes scores that the causal mask then hides, and padding."""
    counts = _counted(config, batches)
    squares = sum(int((_documents(batch).astype(np.int64) ** 2).sum()) for batch in batches)
    return {**counts, "pairs": squares, "tokens": sum(batch.tokens.numel() for batch in batches)}


def _packed(batch: Batch, documents: Sequence[int]) -> Batch:
    """The rows one behind the other, cut into documents."""
    borders = torch.tensor([0, *documents], dtype=torch.int32).cumsum(0).int()
    assert borders[-1] == batch.tokens.numel()
    flat = replace(batch, tokens=batch.tokens.reshape(1, -1), labels=batch.labels.reshape(1, -1))
    return replace(flat, cu_seqlens=borders, lengths=torch.tensor([int(borders[-1])]), ids=["all"])


def _frozen(*names: str, **options: Any) -> Config:
    config = tiny_config(**options)
    for name in names:
        getattr(config.model, name).freeze = True
    return config


def _with(config: Config, name: str, **changes: Any) -> Config:
    for key, value in changes.items():
        setattr(getattr(config.model, name), key, value)
    return config


CASES = {
    "all train": tiny_config(),
    "frozen encoder": _frozen("vision"),
    "frozen encoder and projector": _frozen("vision", "projector"),
    "projector only": _frozen("vision", "llm"),
    "encoder only": _frozen("projector", "llm"),
    "linear projector behind a frozen encoder": _frozen("vision", projector="linear"),
    "last layer of the encoder": _with(tiny_config(), "vision", freeze=True, train=["layers.1"]),
    "encoder without its first layer": _with(_frozen("llm"), "vision", train=["!layers.0", "!patch_embedding"]),
    "last layers of the LLM": _with(tiny_config(), "llm", freeze=True, train=["layers.2", "layers.3"]),
    "biases only": _with(_frozen("projector"), "vision", freeze=True, train=["bias"]),
    "tied embeddings": tiny_config(tie_embeddings=True),
    "active experts": tiny_config(num_experts=8),
    "pixel shuffle": tiny_config(projector="pixel_shuffle"),
    "perceiver": _frozen("vision", projector="perceiver", projector_changes={"num_queries": 4}),
    "resampler": tiny_config(projector="resampler", projector_changes={"num_queries": 4}),
    "ViT layer": _frozen("vision", projector="vit"),
    "SigLIP": tiny_config(vision="siglip"),
    "DINOv2": tiny_config(vision="dinov2", vision_changes={"registers": 2}),
    "LoRA on two maps": _with(tiny_config(), "llm", lora=LoraConfig(rank=4, targets=["o_proj", "down_proj"])),
    "LoRA on one of three joined maps": _with(tiny_config(), "llm", lora=LoraConfig(rank=4, targets=["v_proj"])),
    "LoRA on all maps": _with(tiny_config(), "llm", lora=LoraConfig(rank=4)),
    "LoRA on the encoder": _with(_frozen("llm"), "vision", lora=LoraConfig(rank=4, targets=["out_proj", "fc1"])),
}


def _batches(config: Config) -> list[Batch]:
    """4 samples of 16 tokens in two micro-batches; every second one has an image."""
    whole = global_batch(0)
    for row in whole.tokens[::2]:
        row[2 + image_tokens(config.model) : 6] = 5  # text in place of image tokens that the projector has no rows for
    return micro_batches(whole, 2, 0, 1)[:2]


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_every_product_of_a_step_is_counted(config: Config, groups: Any) -> None:
    batches = _batches(config)
    seen, counter = _run(config, groups, batches)
    found = counter.step(_as_computed(config, batches))
    assert sum(part.model for part in found.values()) == pytest.approx(seen, rel=1e-9)
    assert all(part.hardware == part.model for part in found.values())


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_5"])
def test_images_of_any_size(kind: str, groups: Any) -> None:
    """Frames and windows of images have the sizes that they have."""
    config = qwen_config(kind)
    batches = [any_size_batch()]
    seen, counter = _run(config, groups, batches)
    found = counter.step(_as_computed(config, batches))
    assert sum(part.model for part in found.values()) == pytest.approx(seen, rel=1e-9)


def test_recomputation_is_work_of_the_hardware_only(groups: Any) -> None:
    """Layers of a frozen encoder are not run again."""
    for names in ((), ("vision",)):
        config = _frozen(*names)
        config.trainer.recompute = "full"
        batches = _batches(config)
        seen, counter = _run(config, groups, batches)
        found = counter.step(_as_computed(config, batches))
        assert sum(part.hardware for part in found.values()) == pytest.approx(seen, rel=1e-9)
        plain = FlopCounter(_frozen(*names), {}).step(_as_computed(config, batches))
        assert {name: part.model for name, part in found.items()} == {name: part.model for name, part in plain.items()}


def test_nothing_is_counted_below_the_lowest_part_that_trains() -> None:
    """The LLM computes gradients down to its embeddings all the same; that they are not needed shows in the MFU."""
    config = _frozen("vision", "projector")
    upper = _with(config, "llm", freeze=True, train=["layers.3"])
    counts = _counted(upper, _batches(upper))
    found = FlopCounter(upper, {}).step(counts)
    llm: Any = upper.model.llm
    maps = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) * counts["tokens"]
    attention, head = 4 * 64 * counts["pairs"], 2 * 64 * llm.vocab_size * counts["labels"]
    assert found["llm"].model == 4 * (maps + attention) + head + (2 * maps + 2 * attention) + head
    patches = 2 * 64 * 3 * 16**2 * counts["patches"]
    trained = FlopCounter(tiny_config(), {}).step(counts)["vision"].model  # thrice, but for the pixels' gradient
    assert found["vision"].model == pytest.approx((trained + patches) / 3)


def test_documents_of_a_packed_row_see_themselves_only(groups: Any) -> None:
    whole = global_batch(0)
    packed = _packed(whole, [16, 5, 11, 32, 16, 48])
    config = tiny_config()
    seen, counter = _run(config, groups, [packed])
    assert sum(part.model for part in counter.step(_as_computed(config, [packed])).values()) == pytest.approx(seen)
    brute = sum(n * (n + 1) // 2 for n in (16, 5, 11, 32, 16, 48))
    assert _counted(config, [packed])["pairs"] == brute
    padding = replace(packed, lengths=torch.tensor([80]))  # what is left of the row is a document of padding
    counts = _counted(config, [padding])
    assert (counts["tokens"], counts["pairs"]) == (80, sum(n * (n + 1) // 2 for n in (16, 5, 11, 32, 16)))


def test_pairs_in_windows_and_of_text_counted_one_by_one() -> None:
    batch = replace(global_batch(0), lengths=torch.tensor([16, 3, 9, 16, 1, 7, 12, 16]))
    config = tiny_config(sliding_window=4, window_layers=[0])
    seen = sum(min(place + 1, 4) for length in batch.lengths.tolist() for place in range(length))
    assert _counted(config, [batch])["window_pairs"] == seen
    apart = tiny_config(attention="mmca")
    text = [
        place + 1
        for row, length in zip(batch.tokens.tolist(), batch.lengths.tolist(), strict=True)
        for place in range(length)
        if row[place] != IMAGE_TOKEN
    ]
    assert _counted(apart, [batch])["pairs"] == sum(text)
