"""A tiny vision-language model and its batches, for tests of the engine."""

from __future__ import annotations

from typing import Any

import torch

from loongforge.components.llm.llama.config import LlamaConfig
from loongforge.components.llm.llama.qwen3_moe import Qwen3MoeConfig
from loongforge.components.projector.mlp.config import LinearConfig, MLP2xGELUConfig
from loongforge.components.vision.vit.config import ClipViTConfig, SiglipViTConfig
from loongforge.config.schema import Config, DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainerConfig
from loongforge.data.batch import IGNORE, Batch

IMAGE_TOKEN = 3
VOCAB = 256
NUM_PATCHES = 4


def tiny_vision(kind: str = "clip", **changes: Any) -> ClipViTConfig | SiglipViTConfig:
    """32 x 32 pixels, four patches."""
    sizes = dict(hidden_size=64, num_layers=3, num_heads=4, mlp_hidden_size=128, image_size=32, patch_size=16)
    cls = ClipViTConfig if kind == "clip" else SiglipViTConfig
    return cls(**{"type": f"{kind}_vit", "init_std": 0.08, **sizes, **changes})


def tiny_llm(**changes: Any) -> LlamaConfig:
    """Four layers with grouped queries; with experts where `num_experts` is given."""
    sizes: dict[str, Any] = dict(
        hidden_size=64, num_layers=4, num_heads=4, num_kv_heads=2, mlp_hidden_size=96, max_seq_len=128
    )
    sizes |= dict(vocab_size=VOCAB, mlp_hidden_size=96, init_std=0.08)
    if "num_experts" in changes:
        experts = dict(experts_per_token=2, expert_hidden_size=48, head_dim=None)
        return Qwen3MoeConfig(**{"type": "qwen3_moe", **sizes, **experts, **changes})
    return LlamaConfig(**{"type": "llama", **sizes, **changes})


def tiny_config(
    *,
    vision: str = "clip",
    projector: str = "mlp",
    parallel: ParallelConfig | None = None,
    distributed: bool = False,
    precision: Any = "fp32",
    vision_changes: dict[str, Any] | None = None,
    projector_changes: dict[str, Any] | None = None,
    **llm: Any,
) -> Config:
    """A recipe of the tiny model: 30 steps of 8 samples in micro-batches of 2."""
    classes = {"mlp": MLP2xGELUConfig, "linear": LinearConfig}
    types = {"mlp": dict(type="mlp2x_gelu", init_std=0.08), "linear": dict(type="linear")}
    model = ModelConfig(
        vision=tiny_vision(vision, **(vision_changes or {})),
        projector=classes[projector](**types[projector], **(projector_changes or {})),
        llm=tiny_llm(parallel=parallel or ParallelConfig(), **llm),
    )
    return Config(
        name="tiny",
        model=model,
        data=DataConfig(train="none", tokenizer="none"),
        optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.05, warmup_steps=5, distributed=distributed),
        trainer=TrainerConfig(steps=30, global_batch_size=8, micro_batch_size=2, precision=precision),
    )


def global_batch(step: int) -> Batch:
    """8 samples of 16 tokens: every second one has an image, one has more labels than the others."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(4, VOCAB, (8, 16), generator=generator)
    tokens[::2, 2 : 2 + NUM_PATCHES] = IMAGE_TOKEN
    labels = torch.full((8, 16), IGNORE)
    labels[:, 10:13] = tokens[:, 11:14]
    labels[1, 6:15] = tokens[1, 7:16]
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return Batch(tokens, labels, images, torch.full((8,), 16), [str(i) for i in range(8)])


def micro_batches(whole: Batch, size: int, dp_rank: int, dp: int) -> list[Batch]:
    """A data-parallel rank's part of a global batch."""
    parts = []
    for number in range(len(whole.ids) // size // dp):
        first = (number * dp + dp_rank) * size
        rows = list(range(first, first + size))
        images = whole.images[[row // 2 for row in rows if row % 2 == 0]]
        ids = [whole.ids[row] for row in rows]
        parts.append(Batch(whole.tokens[rows], whole.labels[rows], images, whole.lengths[rows], ids))
    return parts


def image_rows(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Rows `[n, H]` of images, where one process holds the whole model."""
    return model.project(model.vision(images).transpose(0, 1)).flatten(0, 1)


def run_model(model: Any, batch: Batch) -> torch.Tensor:
    """Hidden states `[S, B, H]`, where one process holds the whole model."""
    return model(batch, image_rows(model, batch.images) if len(batch.images) else None)
