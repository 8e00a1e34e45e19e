"""What the planner is given and what it answers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Objective = Literal["one_barrier", "lock_step", "pipeline"]
OBJECTIVES: tuple[str, ...] = ("one_barrier", "lock_step", "pipeline")


@dataclass(frozen=True)
class BatchMetadata:
    """A global batch, as far as a plan needs to know it. `n` samples with `m` images in all; anything numpy makes
    integers of is taken.

    Raises:
        ValueError: lengths that do not fit together, negative numbers, numbers that are not whole.
    """

    text_tokens: Ints
    """[n] tokens of a sample that are not an image's."""
    image_offsets: Ints
    """[n + 1] images of sample i are those from image_offsets[i] up to image_offsets[i + 1]."""
    image_units: Ints
    """[m] attention units of an image: tiles, frame groups; 1 for an image of native resolution."""
    patches_per_unit: Ints
    """[m]"""
    image_tokens: Ints
    """[m] tokens that an image takes in the language model."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _whole_numbers(field.name, getattr(self, field.name)))
        offsets, images = self.image_offsets, len(self.image_units)
        if len(offsets) != len(self.text_tokens) + 1:
            raise ValueError(f"image_offsets has {len(offsets)} entries for {len(self.text_tokens)} samples; one more")
        if offsets[0] != 0 or offsets[-1] != images or (np.diff(offsets) < 0).any():
            raise ValueError(f"image_offsets must rise from 0 to the number of images, {images}")
        if len(self.patches_per_unit) != images or len(self.image_tokens) != images:
            raise ValueError("image_units, patches_per_unit and image_tokens must have one entry per image")

    def __len__(self) -> int:
        return len(self.text_tokens)

    def tokens(self) -> Ints:
        """[n] tokens of every sample, images included."""
        return self.text_tokens + self.per_sample(self.image_tokens)

    def patches(self) -> Ints:
        """[n] patches of every sample."""
        return self.per_sample(self.image_units * self.patches_per_unit)

    def per_sample(self, of_images: Ints) -> Ints:
        """[n] sums over the images of every sample."""
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(of_images)])
        return sums[self.image_offsets[1:]] - sums[self.image_offsets[:-1]]

    def sample_of_image(self) -> Ints:
        """[m]"""
        return np.repeat(np.arange(len(self)), np.diff(self.image_offsets))

    def image_of_unit(self) -> Ints:
        """[sum(image_units)]"""
        return np.repeat(np.arange(len(self.image_units)), self.image_units)


def _whole_numbers(name: str, values: Any) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, it has the shape {array.shape}")
    whole = array.astype(np.int64)
    if (whole != array).any() or (whole < 0).any():
        raise ValueError(f"{name} must hold whole numbers from 0 up")
    return whole


@dataclass(frozen=True)
class CostModel:
    """What samples cost, in milliseconds of one rank for forward and backward pass together.

    Encoder, for each attention unit of p patches, with e = `vision_extra_patches`:
    `vision_linear * (p + e) + vision_quadratic * (p + e)**2 + vision_per_unit`.
    Language model, for each document of T tokens (text and image):
    `llm_linear * T + llm_quadratic * T**2 + llm_per_sample`.
    Only the ratios matter to a plan.

    Raises:
        ValueError: a coefficient is negative or not finite.
    """

    vision_linear: float = 0.0
    """ms per patch"""
    vision_quadratic: float = 0.0
    """ms per patch squared: attention inside a unit"""
    vision_per_unit: float = 0.0
    """ms per unit"""
    vision_extra_patches: int = 0
    """patches that the encoder adds to each unit, such as a class token"""
    llm_linear: float = 0.0
    """ms per token"""
    llm_quadratic: float = 0.0
    """ms per token squared: attention inside a document"""
    llm_per_sample: float = 0.0
    """ms per document"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a finite number from 0 up, not {value}")

    def units(self, patches: Ints) -> Floats:
        """ms to encode one unit, for each number of patches."""
        length = np.asarray(patches, np.float64) + float(self.vision_extra_patches)
        return self.vision_linear * length + self.vision_quadratic * (length * length) + self.vision_per_unit

    def documents(self, tokens: Ints) -> Floats:
        """ms of the language model for a document, for each number of tokens."""
        length = np.asarray(tokens, np.float64)
        return self.llm_linear * length + self.llm_quadratic * (length * length) + self.llm_per_sample


@dataclass(frozen=True)
class Plan:
    """Where every sample of a global batch goes."""

    rank: Ints
    """[n] data-parallel rank that runs the language model on a sample."""
    micro_batch: Ints
    """[n] micro-batch in which it does."""
    encoder_rank: Ints | None
    """[sum(image_units)] rank that encodes a unit, in the micro-batch of its sample; units in the order of images.
    None: images are encoded where their sample is."""

    def digest(self) -> str:
        """16 hexadecimal digits that differ where plans do: for ranks to compare."""
        parts = [self.rank, self.micro_batch] + ([] if self.encoder_rank is None else [self.encoder_rank])
        return hashlib.blake2b(b"|".join(part.astype("<i8").tobytes() for part in parts), digest_size=8).hexdigest()
