"""Rotary position angles (RoFormer, arXiv 2104.09864) and their stretches for long contexts."""

from __future__ import annotations

import math

import torch

from loongforge.components.llm.llama.config import LlamaConfig
from loongforge.components.llm.llama.rope_scaling import RopeScalingConfig


def inverse_frequencies(config: LlamaConfig) -> torch.Tensor:
    """float32 `[head_dim / 2]`, in radians per position."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling.rope_type == "yarn":
        return _yarn(frequencies, scaling, config.rope_theta)
    return _llama3(frequencies, scaling)


def _llama3(frequencies: torch.Tensor, scaling: RopeScalingConfig) -> torch.Tensor:
    """Low frequencies are divided by `factor`, high ones kept, those between blended (Llama 3.1)."""
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    assert original is not None and low is not None and high is not None
    wavelengths = 2 * math.pi / frequencies
    blend = (original / wavelengths - low) / (high - low)
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / scaling.factor, frequencies)
    between = (wavelengths <= original / low) & (wavelengths >= original / high)
    return torch.where(between, blended, stretched)


def _yarn(frequencies: torch.Tensor, scaling: RopeScalingConfig, theta: float) -> torch.Tensor:
    """Frequencies with many turns in the original context are kept, those with few divided by `factor`, with a linear
    ramp over the index between (YaRN, arXiv 2309.00071, section 3.2)."""
    width, original = 2 * len(frequencies), scaling.original_max_position_embeddings
    assert original is not None

    def index(turns: float) -> float:
        """Place of the frequency that turns so often in the original context."""
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(index(scaling.beta_fast)), 0), min(math.ceil(index(scaling.beta_slow)), width - 1)
    ramp = (torch.arange(len(frequencies)) - low) / (high - low if high > low else 0.001)
    stretch = ramp.clamp(0, 1)
    return frequencies / scaling.factor * stretch + frequencies * (1 - stretch)


def cos_sin(inverse: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of int64 `positions` `[S]`, or `[S, B]`: float32 `[2, S, 1 or B, 1, 1, head_dim / 2]`."""
    angles = positions.float().reshape(len(positions), -1, 1) * inverse
    return torch.stack([angles.cos(), angles.sin()])[:, :, :, None, None]
