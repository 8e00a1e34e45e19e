"""Rotary position angles (RoFormer, arXiv 2104.09864) with the frequency stretch of Llama 3.1."""

from __future__ import annotations

import math

import torch

from loongforge.components.llm.llama.config import LlamaConfig, RopeScalingConfig


def inverse_frequencies(config: LlamaConfig) -> torch.Tensor:
    """float32 `[head_dim / 2]`, in radians per position."""
    exponents = torch.arange(0, config.head_size, 2, dtype=torch.int64).float() / config.head_size
    frequencies = 1.0 / config.rope_theta**exponents
    return _stretch(frequencies, config.rope_scaling) if config.rope_scaling else frequencies


def _stretch(frequencies: torch.Tensor, scaling: RopeScalingConfig) -> torch.Tensor:
    """Low frequencies are divided by `factor`, high ones kept, those between blended (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    original = scaling.original_max_position_embeddings
    longest, shortest = original / scaling.low_freq_factor, original / scaling.high_freq_factor
    blend = (original / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = torch.where(wavelengths > longest, frequencies / scaling.factor, frequencies)
    between = (wavelengths <= longest) & (wavelengths >= shortest)
    return torch.where(between, blended, stretched)


def cos_sin(inverse: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of int64 `positions` `[S]`: float32 `[2, S, 1, 1, 1, head_dim / 2]`."""
    angles = torch.outer(positions.float(), inverse)
    return torch.stack([angles.cos(), angles.sin()])[:, :, None, None, None]


def frequency_axes(config: LlamaConfig) -> torch.Tensor | None:
    """int64 `[head_dim / 2]`: the axis of positions that each frequency turns with; None: there is one axis."""
    if config.mrope_section is None:
        return None
    return torch.repeat_interleave(torch.arange(len(config.mrope_section)), torch.tensor(config.mrope_section)) % 3


def cos_sin_of_axes(inverse: torch.Tensor, positions: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of int64 `positions` `[3, B, S]`: float32 `[2, S, B, 1, 1, head_dim / 2]`."""
    angles = positions.float()[axes].permute(2, 1, 0) * inverse  # [S, B, head_dim / 2]
    return torch.stack([angles.cos(), angles.sin()])[:, :, :, None, None]
