"""FLOPs of training steps as they were: true lengths, true images, frozen parts, adapters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from loongforge.components.llm.base import LLMConfig
from loongforge.components.products import COUNTS, Adapters, Passes, Product, training_passes
from loongforge.components.projector.base import ProjectorConfig
from loongforge.components.sharding import global_names
from loongforge.components.transformer.lora import LowRank
from loongforge.components.vision.base import AnySizeVisionConfig, VisionConfig
from loongforge.config.schema import Config, ModelConfig
from loongforge.model.vlm import IGNORED, VisionLanguageModel
from loongforge.model.windows import Inputs, num_images
from loongforge.parallel.images import ImageShape
from loongforge.parallel.session import gather_lists


@dataclass(frozen=True)
class StepFlops:
    """Of one component in a step, over all ranks."""

    model: float
    """Forward, gradients of weights that train, and of inputs where something before trains."""
    hardware: float
    """With layers that are computed a second time."""


class FlopCounter:
    """FLOPs of steps from what was counted in them; linear, so its factors are worked out once.

    Padding, and logits of positions without a label, are not counted.

    Args:
        config: The recipe.
        adapters: By component.
    """

    def __init__(self, config: Config, adapters: Mapping[str, Adapters]) -> None:
        self._factors: dict[str, dict[str, Passes]] = {}
        fed = False
        for name, products in _products(config.model).items():
            component = getattr(config.model, name)
            found = training_passes(
                products,
                component,
                fed=fed,
                recompute=config.trainer.recompute == "full",
                adapters=adapters.get(name, {}),
            )
            self._factors[name] = found
            fed = fed or component.trains

    def step(self, counts: Mapping[str, int]) -> dict[str, StepFlops]:
        """FLOPs of each component.

        Args:
            counts: As from `count_work`, over the whole global batch.
        """
        return {
            name: StepFlops(
                sum(passes.model * counts[per] for per, passes in factors.items()),
                sum(passes.hardware * counts[per] for per, passes in factors.items()),
            )
            for name, factors in self._factors.items()
        }


def _products(model: ModelConfig) -> dict[str, list[Product]]:
    """Of each component, in the order of the data."""
    vision, projector, llm = model.vision, model.projector, model.llm
    assert isinstance(llm, LLMConfig)
    found = {}
    if isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig):
        ends = dict(input_size=vision.output_size, output_size=llm.hidden_size)
        found = {"vision": vision.products(), "projector": projector.products(**ends)}
    return found | {"llm": llm.products()}


def find_adapters(config: Config, model: VisionLanguageModel) -> dict[str, Adapters]:
    """Adapters of the whole model. Collective over the world where the recipe has some.

    Args:
        config: The recipe.
        model: This rank's parts.
    """
    parts = [part for part in ("vision", "projector", "llm") if getattr(getattr(config.model, part), "lora", None)]
    if not parts:
        return {}
    mine = [
        (name, layer, widths)
        for name, module in model.components().items()
        if name in parts
        for layer, widths in _adapters_of(module).items()
    ]
    found: dict[str, dict[str, tuple[int, int, int]]] = {name: {} for name in parts}
    for name, layer, widths in gather_lists(mine):
        found[name][layer] = widths
    return dict(found)


def _adapters_of(module: torch.nn.Module) -> dict[str, tuple[int, int, int]]:
    globally = global_names(module)
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, LowRank):
            (inner, into), out = part.a.shape, len(part.b)
            tp = part.group.size() if part.group is not None else 1
            layer = globally[f"{name}.a"].removesuffix(".lora.a")
            found[layer] = (inner, into * (tp if part.row else 1), out * (tp if part.column else 1))
    return found


def count_work(
    batches: Iterable[Inputs], lengths: Sequence[torch.Tensor], model: ModelConfig, image_token: int | None
) -> list[int]:
    """What products are counted by, in the order of `COUNTS`.

    Args:
        batches: Micro-batches of one LLM replica, with the shapes of all their images.
        lengths: int64 `[B]` of each: tokens of its rows without padding.
        model: The model.
        image_token: Id of the image placeholder; None: no position is an image's.
    """
    found: Counter[str] = Counter()
    for batch, real in zip(batches, lengths, strict=True):
        found["labels"] += int((batch.labels != IGNORED).sum())
        found["tokens"] += int(real.sum())
        found.update(_pairs(batch, real, model.llm, image_token))
        if model.vision is not None:
            found.update(_image_work(batch, model))
    return [found[name] for name in COUNTS]


def _pairs(batch: Inputs, lengths: torch.Tensor, llm: object, image_token: int | None) -> dict[str, int]:
    """Pairs of a query and a key that it sees: each token and those before it in its document."""
    if batch.cu_seqlens is None:
        documents = lengths.numpy()
    else:
        documents = np.diff(np.minimum(batch.cu_seqlens.cpu().numpy().astype(np.int64), int(lengths[0])))
    every = int((documents * (documents + 1) // 2).sum())
    found = {"pairs": every}
    if getattr(llm, "attention", "causal") == "mmca":  # what is not text sees nothing but itself
        found["pairs"] = _text_pairs(batch, lengths, image_token)
    if window := getattr(llm, "sliding_window", None):
        beyond = np.maximum(documents - window, 0)
        found["window_pairs"] = every - int((beyond * (beyond + 1) // 2).sum())
    return found


def _text_pairs(batch: Inputs, lengths: torch.Tensor, image_token: int | None) -> int:
    """Of queries that are text."""
    size = batch.tokens.shape[1]
    places = np.tile(np.arange(size), (len(batch.tokens), 1))
    if batch.cu_seqlens is not None:
        borders = batch.cu_seqlens.cpu().numpy()
        places[0] -= np.repeat(borders[:-1], np.diff(borders))
    is_image = np.isin(batch.tokens.cpu().numpy(), [] if image_token is None else [image_token])
    text = ~is_image & (np.arange(size) < lengths.numpy()[:, None])
    return int((places[text] + 1).sum())


def _image_work(batch: Inputs, model: ModelConfig) -> dict[str, int]:
    vision, projector = model.vision, model.projector
    assert isinstance(vision, VisionConfig) and isinstance(projector, ProjectorConfig)
    if batch.shapes is None:
        number = num_images(batch)
        features = vision.num_image_tokens
        rows, tiles, patches = projector.num_tokens(features), number, number * vision.num_patches
        sums = {"features": number * features, "feature_pairs": number * features**2, "rows": number * rows}
        return {"images": tiles, "patches": patches, "patch_pairs": patches * vision.num_patches, **sums}
    shapes = batch.shapes
    found = {
        "images": sum(shape.pixels for shape in shapes),
        "patches": sum(shape.patches for shape in shapes),
        "features": sum(shape.features for shape in shapes),
        "feature_pairs": sum(shape.features**2 for shape in shapes),
        "rows": sum(shape.tokens for shape in shapes),
    }
    if isinstance(vision, AnySizeVisionConfig):
        found["patch_pairs"] = sum(shape.grid[0] * (shape.grid[1] * shape.grid[2]) ** 2 for shape in shapes)
        edge = getattr(vision, "window_tokens", 0) * vision.merge_size
        found["patch_window_pairs"] = sum(_in_windows(shape, edge) for shape in shapes) if edge else 0
    return found


def _in_windows(shape: ImageShape, edge: int) -> int:
    """Pairs of patches in the windows of an image; those at its right and bottom may be smaller."""
    squares = [length // edge * edge**2 + (length % edge) ** 2 for length in shape.grid[1:]]
    return shape.grid[0] * squares[0] * squares[1]
