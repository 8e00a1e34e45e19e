"""Eight kinds of global batches, drawn at random: what planner and packer are tested and measured on.

A batch is what `ranks * micro_batches` packs of a token budget hold when each rank packs its samples as they come (next
fit): the samples that a run without balancing would train on. Cost models are those of three well-known models on one
H100, from the FLOPs of their layers and assumed efficiencies: LLaVA-1.5-7B (encoder frozen), Qwen2.5-VL-7B,
InternVL2.5-26B.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loongforge.data.balance import BatchMetadata, CostModel

LLAVA = CostModel(
    vision_linear=1.742e-3, vision_quadratic=3.98e-7, vision_extra_patches=1, llm_linear=0.0668, llm_quadratic=2.06e-6
)
QWEN = CostModel(vision_linear=9.85e-3, vision_quadratic=2.42e-7, llm_linear=0.0715, llm_quadratic=1.58e-6)
INTERN = CostModel(
    vision_linear=6.75e-2, vision_quadratic=6.80e-6, vision_extra_patches=1, llm_linear=0.195, llm_quadratic=4.64e-6
)

Image = tuple[int, int, int]
"""units, patches per unit, tokens"""
Sample = tuple[int, list[Image]]
"""text tokens, images"""


@dataclass(frozen=True)
class Kind:
    """One kind of data, the budget it is packed to, and the model that is trained on it."""

    draw: Callable[[np.random.Generator], Sample]
    budget: int
    cost: CostModel


def _lognormal(rng: np.random.Generator, median: float, sigma: float, low: int, high: int) -> int:
    return int(min(max(median * math.exp(sigma * rng.standard_normal()), low), high))


def _fixed(rng: np.random.Generator) -> Sample:
    return _lognormal(rng, 180, 0.9, 20, 3000), [(1, 576, 576)]


def _tiles(rng: np.random.Generator) -> Sample:
    tiles = 1 + int(rng.choice([2, 2, 3, 4, 4, 4]))
    return _lognormal(rng, 200, 0.8, 20, 3000), [(tiles, 576, 576 * tiles)]


def _native_image(rng: np.random.Generator, median: float = 1600) -> Image:
    tokens = _lognormal(rng, median / 4, 0.9, 16, 4096)
    return 1, 4 * tokens, tokens


def _native(rng: np.random.Generator) -> Sample:
    return _lognormal(rng, 250, 1.0, 20, 6000), [_native_image(rng, 3000) for _ in range(int(rng.integers(1, 3)))]


def _interleaved(rng: np.random.Generator) -> Sample:
    images = min(int(rng.geometric(0.28)) - 1, 16)
    return _lognormal(rng, 1100, 0.9, 50, 8000), [_native_image(rng, 1200) for _ in range(images)]


def _video(rng: np.random.Generator) -> Sample:
    frames = _lognormal(rng, 16, 1.1, 2, 256)
    patches = 4 * int(rng.choice([64, 100, 144, 196, 256]))
    frames = min(frames, 30000 * 4 // patches)
    return _lognormal(rng, 150, 0.8, 20, 1500), [(frames, patches, frames * patches // 4)]


def _text(rng: np.random.Generator) -> Sample:
    return _lognormal(rng, 1200, 1.4, 20, 32000), []


def _omni(rng: np.random.Generator) -> Sample:
    draw = (_text, _native, _interleaved, _video)[int(rng.choice(4, p=[0.4, 0.3, 0.15, 0.15]))]
    return draw(rng)


def _heavy_tiles(rng: np.random.Generator) -> Sample:
    tiles = int(rng.choice([1, 2, 3, 5, 7, 9, 13], p=[0.25, 0.1, 0.15, 0.15, 0.15, 0.1, 0.1]))
    return _lognormal(rng, 300, 1.0, 20, 4000), [(tiles, 1024, 256 * tiles)]


KINDS: dict[str, Kind] = {
    "fixed 576": Kind(_fixed, 4096, LLAVA),
    "tiles": Kind(_tiles, 8192, LLAVA),
    "native": Kind(_native, 16384, QWEN),
    "interleaved": Kind(_interleaved, 16384, QWEN),
    "video": Kind(_video, 32768, QWEN),
    "text": Kind(_text, 32768, QWEN),
    "omni": Kind(_omni, 32768, QWEN),
    "tiles, heavy encoder": Kind(_heavy_tiles, 8192, INTERN),
}


def metadata(samples: list[Sample]) -> BatchMetadata:
    """The samples as the planner takes them."""
    images = [image for _, of_sample in samples for image in of_sample]
    offsets = np.cumsum([0] + [len(of_sample) for _, of_sample in samples])
    columns = np.array(images, dtype=np.int64).reshape(-1, 3).T
    return BatchMetadata(np.array([text for text, _ in samples]), offsets, *columns)


def packed_batch(kind: str, ranks: int, micro_batches: int, seed: int) -> tuple[BatchMetadata, np.ndarray]:
    """A batch that fills `ranks * micro_batches` packs in the order of drawing, and [n] the pack of every sample."""
    rng = np.random.default_rng(seed)
    budget, samples, packs, pack, room = KINDS[kind].budget, [], [], 0, KINDS[kind].budget
    while True:
        sample = KINDS[kind].draw(rng)
        tokens = sample[0] + sum(image[2] for image in sample[1])
        if tokens > budget:
            continue
        if tokens > room:
            pack, room = pack + 1, budget
            if pack == ranks * micro_batches:
                return metadata(samples), np.array(packs)
        samples.append(sample)
        packs.append(pack)
        room -= tokens


def fixed_batch(kind: str, ranks: int, per_rank: int, seed: int) -> BatchMetadata:
    """`per_rank` samples for each rank, drawn independently."""
    rng = np.random.default_rng(seed)
    return metadata([KINDS[kind].draw(rng) for _ in range(ranks * per_rank)])
