"""A tiny Qwen2-VL and Qwen2.5-VL, and batches of images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loongforge.components.llm.llama.config import LlamaConfig
from loongforge.components.projector.patch_merger.config import PatchMergerConfig
from loongforge.components.vision.qwen_vl.config import Qwen2ViTConfig, Qwen25ViTConfig, QwenViTConfig
from loongforge.config.schema import Config, ModelConfig
from loongforge.data.batch import IGNORE, Batch
from loongforge.parallel.images import ImageShape
from tests.support.tiny import IMAGE_TOKEN, VOCAB, tiny_config, tiny_llm

PATCH = 14
Sample = tuple["int | tuple[int, int, int] | tuple[int, int, int, float]", ...]
"""Numbers of text tokens, and grids of patches (steps, rows, columns) of images, in order; of videos with the distance
of two steps."""

SAMPLES: tuple[Sample, ...] = (
    (3, (1, 4, 6), 5),
    (9,),
    (2, (1, 2, 2), 1, (1, 10, 4), 3, (1, 6, 6), 6),
    ((1, 8, 8), 4),
    (1, (1, 2, 12), 2, (1, 4, 6), 7),
)


def qwen_vision(kind: str, **changes: Any) -> QwenViTConfig:
    """Three layers; of Qwen2.5-VL the second attends to whole frames, the others to windows of 4 x 4 patches."""
    sizes = dict(hidden_size=64, num_layers=3, num_heads=4, mlp_hidden_size=256, init_std=0.08, image_size=56)
    if kind == "qwen2":
        return Qwen2ViTConfig(**{"type": "qwen2_vit", **sizes, **changes})
    windows = dict(window_size=4 * PATCH, full_attention_layers=[1], mlp_hidden_size=96)
    return Qwen25ViTConfig(**{"type": "qwen2_5_vit", **sizes, **windows, **changes})


def qwen_config(kind: str = "qwen2", vision: dict[str, Any] | None = None, **llm: Any) -> Config:
    """A recipe of the tiny model; heads of width 16 with sections of 2, 3 and 3 frequencies."""
    config = tiny_config()
    norm = "layer_norm" if kind == "qwen2" else "rms_norm"
    sizes = dict(qkv_bias=True, norm_eps=1e-6, mrope_section=[2, 3, 3], rope_theta=1e6, max_seq_len=256)
    decoder: LlamaConfig = tiny_llm(**{**sizes, **llm})
    merger = PatchMergerConfig(type="patch_merger", norm=norm, init_std=0.08)  # type: ignore[arg-type]
    config.model = ModelConfig(vision=qwen_vision(kind, **(vision or {})), projector=merger, llm=decoder)
    return config


def shape(steps: int, rows: int, columns: int, interval: float = 1.0) -> ImageShape:
    """Of an image or video of so many rows and columns of patches, as the tiny models see it."""
    patches, merged = steps * rows * columns, (steps, rows // 2, columns // 2)
    return ImageShape(patches, patches, patches, patches // 4, (steps, rows, columns), merged, interval=interval)


def any_size_batch(samples: Sequence[Sample] = SAMPLES, seed: int = 0, length: int = 64) -> Batch:
    """Padded rows with random texts, labels on the last text and random patches; images do not depend on the texts."""
    texts, pixels = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    tokens = torch.full((len(samples), length), 4)
    labels = torch.full((len(samples), length), IGNORE)
    shapes, lengths = [], []
    for row, sample in enumerate(samples):
        parts = []
        for part in sample:
            if isinstance(part, int):
                parts.append(torch.randint(4, VOCAB, (part,), generator=texts))
            else:
                shapes.append(shape(*part))
                parts.append(torch.full((shapes[-1].tokens,), IMAGE_TOKEN))
        ids = torch.cat(parts)
        tokens[row, : len(ids)] = ids
        learned = min(4, int(sample[-1]) - 1)  # type: ignore[arg-type]
        labels[row, len(ids) - 1 - learned : len(ids) - 1] = ids[-learned:]
        lengths.append(len(ids))
    patches = torch.randn(sum(s.pixels for s in shapes), 3 * 2 * PATCH**2, generator=pixels)
    ids_of_rows = [str(row) for row in range(len(samples))]
    return Batch(tokens, labels, patches, torch.tensor(lengths), ids_of_rows, shapes=shapes)


def run_any_size(model: Any, batch: Batch) -> torch.Tensor:
    """Hidden states `[S, B, H]`, where one process holds the whole model."""
    rows = None
    if batch.shapes:
        rows = model.project_any(model.encode(batch.images, batch.shapes), batch.shapes)
    return model(batch, rows)
