"""The composed model: encode -> project -> merge into the token stream -> LLM -> loss.

Shapes: `B` samples, `S` tokens of a padded row, `N` images, `P` features of an image, `H` the LLM's width,
`T` positions with a label, `V` vocabulary. Under context and sequence parallelism a rank sees its own part of S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule

from loongforge.components.transformer.cache import CachedStep, KVCache
from loongforge.components.transformer.router_spec import RouterSpec
from loongforge.components.transformer.sequence import SequenceView
from loongforge.model.positions import grid_positions
from loongforge.model.windows import Inputs
from loongforge.parallel.images import Shapes
from loongforge.parallel.routes import context_positions

IGNORED = -100  # label of a position that is not learned


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What images become on their way; every rank knows it, whichever parts it holds."""

    token: int
    """Id that image rows replace."""
    feature_shape: tuple[int, ...]
    """`(P, width)` of what the vision encoder gives for an image; `(width,)` where images differ in size."""
    feature_dtype: torch.dtype
    row_size: int
    """H."""
    row_dtype: torch.dtype
    """Of the LLM's embeddings."""
    vision_trains: bool
    projector_trains: bool


class VisionLanguageModel(MegatronModule):
    """This rank's parts of the model. A part that lives on other ranks, or does not exist, is None.

    Args:
        vision: `[N, 3, height, width]` -> `[P, N, width]`; with `any_size`: rows of pixels and the images' shapes ->
            `[features, width]`.
        projector: `[P, N, width]` -> `[P', N, H]`; with `any_size` also: `[features, width]` and shapes -> rows.
        llm: Embedding, decoder and output layer (see `LlamaModel` for the methods used here).
        images: What images become; None for a text-only model.
        routers: What the LLM's routers record of a step; None: it has no experts.
    """

    model_type = ModelType.encoder_or_decoder

    def __init__(
        self,
        *,
        vision: torch.nn.Module | None,
        projector: torch.nn.Module | None,
        llm: Any,
        images: ImageSpec | None,
        routers: RouterSpec | None = None,
    ) -> None:
        super().__init__(next(part for part in (llm, vision, projector) if part is not None).config)
        self.vision, self.projector, self.llm, self.images = vision, projector, llm, images
        self.routers = routers
        self.pre_process = llm is not None and llm.pre_process
        self.post_process = llm is not None and llm.post_process
        self.share_embeddings_and_output_weights = llm is not None and llm.share_embeddings_and_output_weights

    def shared_embedding_or_output_weight(self) -> torch.Tensor | None:
        """The tied embedding, for megatron-core's schedules."""
        return self.llm.shared_embedding_or_output_weight()

    def set_input_tensor(self, input_tensor: torch.Tensor | list[torch.Tensor]) -> None:
        """Takes the previous stage's output."""
        tensor = input_tensor[0] if isinstance(input_tensor, list) else input_tensor
        self.llm.set_input_tensor(tensor)

    def components(self) -> dict[str, Any]:
        """The parts that this rank holds, by name."""
        parts = {"vision": self.vision, "projector": self.projector, "llm": self.llm}
        return {name: part for name, part in parts.items() if part is not None}

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[N, P, width]` -> LLM embeddings `[N, P, H]`."""
        assert self.projector is not None
        dtype = next((param.dtype for param in self.projector.parameters()), features.dtype)
        return self.projector(features.transpose(0, 1).to(dtype)).transpose(0, 1)

    def encode(self, pixels: torch.Tensor, shapes: Shapes | None = None) -> torch.Tensor:
        """Pixels -> features `[N, P, width]`; of images with shapes, one after another: `[features, width]`."""
        assert self.vision is not None
        if shapes is not None and getattr(self.vision, "any_size", False):
            return self.vision(pixels, shapes)
        features = self.vision(pixels).transpose(0, 1)
        return features if shapes is None else features.flatten(0, 1)

    def project_any(self, features: torch.Tensor, shapes: Shapes) -> torch.Tensor:
        """Features `[features, width]` of images of any shape -> LLM embeddings `[tokens, H]`, image by image."""
        assert self.projector is not None
        if not getattr(self.projector, "any_size", False):
            parts = features.split([shape.features for shape in shapes])
            return torch.cat([self.project(part[None])[0] for part in parts])
        dtype = next((param.dtype for param in self.projector.parameters()), features.dtype)
        return self.projector(features.to(dtype), shapes)

    def view(self, batch: Inputs, cache: KVCache | None = None) -> SequenceView:
        """The positions of a micro-batch that this rank works on.

        Args:
            batch: The micro-batch.
            cache: Its rows go on behind what this holds; None: they are whole.
        """
        (_, length), device = batch.tokens.shape, batch.tokens.device
        is_image = None
        if getattr(self.llm, "separates_images", False) and self.images is not None:
            found = batch.tokens == self.images.token
            is_image = found if cache is not None or found.any() else None
        step = None if cache is None else CachedStep(cache, length, device, is_image)
        if step is not None and not step.from_scratch:
            positions = step.counted
        else:
            group = self.llm.cp_group
            positions = torch.from_numpy(context_positions(length, group.rank(), group.size())).to(device)
        axes = self._axes(batch, cache)
        lengths = batch.lengths if cache is None and self.routers is not None else None  # routers alone ask
        places = dict(axes=axes, is_image=is_image, lengths=lengths, step=step)
        return SequenceView(positions, length, batch.cu_seqlens, **places)  # type: ignore[arg-type]

    def _axes(self, batch: Inputs, cache: KVCache | None) -> torch.Tensor | None:
        """Positions on three axes `[3, B, S]`, where images stand in the rows; see `grid_positions`."""
        if not batch.shapes or not getattr(self.llm, "position_axes", False):
            return None
        assert self.images is not None
        borders = None if batch.cu_seqlens is None else batch.cu_seqlens.cpu().numpy()
        axes = grid_positions((batch.tokens == self.images.token).cpu().numpy(), batch.shapes, borders)
        if cache is not None:
            axes += np.array(cache.next_positions)[:, None]
        return torch.from_numpy(axes).to(batch.tokens.device)

    def embed(self, tokens: torch.Tensor, image_rows: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings `[S, B, H]` with image rows in the places of image tokens.

        Args:
            tokens: int64 `[B, S]`, this context-parallel rank's.
            image_rows: `[n, H]` in the order of this rank's image tokens, sample by sample; None: it has none.
        """
        embeddings = self.llm.embed(tokens)
        if image_rows is None:
            # Without images and with a frozen LLM nothing would need a gradient, and the backward pass would not run.
            return embeddings.requires_grad_(torch.is_grad_enabled()) if embeddings.is_leaf else embeddings
        assert self.images is not None
        num_rows, num_samples, width = embeddings.shape
        if num_rows < tokens.shape[1]:  # sequence parallelism
            part = self.llm.tp_group.rank()
            tokens = tokens[:, part * num_rows : (part + 1) * num_rows]
        sample, position = (tokens == self.images.token).nonzero(as_tuple=True)
        flat = embeddings.reshape(num_rows * num_samples, width)
        rows = image_rows.to(embeddings.dtype)
        return flat.index_copy(0, position * num_samples + sample, rows).view_as(embeddings)

    def forward(
        self, batch: Inputs, image_rows: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """This pipeline stage's work: hidden states `[S, B, H]` (the last stage's are normalised)."""
        view = self.view(batch, cache)
        if not self.pre_process:
            return self.llm(None, view)
        tokens = batch.tokens if view.continues else batch.tokens[:, view.positions]
        return self.llm(self.embed(tokens, image_rows), view)

    def label_logits(
        self, hidden: torch.Tensor, labels: torch.Tensor, *, gathered: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[T, V / tp]` and targets `[T]` of the labelled positions, sample by sample. Last stage only.

        Args:
            hidden: From `forward`, or all positions from `llm.whole`.
            labels: int64 `[B, S]` of the same positions.
            gathered: `hidden` is from `llm.whole`.
        """
        rows, targets = _labelled(labels)
        return self.llm.logits(hidden, rows, gathered=gathered), targets

    def losses(self, hidden: torch.Tensor, batch: Inputs) -> torch.Tensor:
        """Cross-entropy `[T]` of the labelled ones of this rank's positions, float32, in nats. Last stage only."""
        rows, targets = _labelled(batch.labels[:, self.view(batch).positions])
        return self.llm.losses(hidden, rows, targets)


def _labelled(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices into the flattened `[S * B]` positions of those with a label, and their labels."""
    sample, position = (labels != IGNORED).nonzero(as_tuple=True)
    return position * labels.shape[0] + sample, labels[sample, position]
