"""The composed model: encode -> project -> merge into the token stream -> LLM -> loss.

Shapes: `B` samples, `S` tokens of a padded row, `N` images, `P` features of an image, `H` the LLM's width,
`T` positions with a label, `V` vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule

IGNORED = -100  # label of a position that is not learned


class Inputs(Protocol):
    """What the model reads of a micro-batch (`loongforge.data.batch.Batch` is one)."""

    tokens: torch.Tensor
    """int64 `[B, S]`; every image token stands for one feature vector."""
    labels: torch.Tensor
    """int64 `[B, S]`: target of each position, or -100."""
    images: torch.Tensor
    """float32 `[N, 3, height, width]`, in the order in which they appear."""


class VisionLanguageModel(MegatronModule):
    """This rank's parts of the model. A part that lives on other ranks, or does not exist, is None.

    Args:
        vision: `[N, 3, height, width]` -> `[P, N, width]`.
        projector: `[P, N, width]` -> `[P, N, H]`.
        llm: Embedding, decoder and output layer (see `LlamaModel` for the methods used here).
        image_token: Id that image features replace; None without images.
        encode_without_grad: The encoder is frozen: keep no activations for its backward pass.
    """

    model_type = ModelType.encoder_or_decoder

    def __init__(
        self,
        *,
        vision: torch.nn.Module | None,
        projector: torch.nn.Module | None,
        llm: Any,
        image_token: int | None,
        encode_without_grad: bool = False,
    ) -> None:
        super().__init__(llm.config)
        self.vision, self.projector, self.llm = vision, projector, llm
        self.image_token = image_token
        self.encode_without_grad = encode_without_grad
        self.pre_process, self.post_process = llm.pre_process, llm.post_process
        self.share_embeddings_and_output_weights = llm.share_embeddings_and_output_weights

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

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[N, 3, height, width]` -> LLM embeddings `[N * P, H]`, image by image."""
        assert self.vision is not None and self.projector is not None
        with torch.no_grad() if self.encode_without_grad else contextlib.nullcontext():
            features = self.vision(images)
        dtype = next((param.dtype for param in self.projector.parameters()), features.dtype)
        projected = self.projector(features.to(dtype))  # [P, N, H]
        return projected.transpose(0, 1).flatten(0, 1)

    def embed(self, batch: Inputs) -> torch.Tensor:
        """Token embeddings `[S, B, H]` with image features in the places of image tokens."""
        embeddings = self.llm.embed(batch.tokens)
        if self.image_token is None or not len(batch.images):
            # Without images and with a frozen LLM nothing would need a gradient, and the backward pass would not run.
            return embeddings.requires_grad_(torch.is_grad_enabled()) if embeddings.is_leaf else embeddings
        num_rows, num_samples, width = embeddings.shape
        sample, position = (batch.tokens == self.image_token).nonzero(as_tuple=True)
        features = self.encode(batch.images).to(embeddings.dtype)
        flat = embeddings.reshape(num_rows * num_samples, width)
        return flat.index_copy(0, position * num_samples + sample, features).view_as(embeddings)

    def forward(self, batch: Inputs) -> torch.Tensor:
        """This pipeline stage's work: hidden states `[S, B, H]` (the last stage's are normalised)."""
        embeddings = self.embed(batch) if self.pre_process else None
        return self.llm(embeddings, batch.tokens.shape[1])

    def label_logits(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[T, V / tp]` and targets `[T]` of the labelled positions, sample by sample. Last stage only."""
        sample, position = (labels != IGNORED).nonzero(as_tuple=True)
        logits = self.llm.logits(hidden, position * labels.shape[0] + sample)
        return logits, labels[sample, position]

    def losses(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy `[T]` of the labelled positions, float32, in nats. Last stage only."""
        logits, targets = self.label_logits(hidden, labels)
        return self.llm.token_losses(logits, targets)
