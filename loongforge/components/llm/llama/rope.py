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
    """Cosines and sines of int64 `positions` `[S]`, or `[S, B]`: float32 `[2, S, 1 or B, 1, 1, head_dim / 2]`."""
    angles = positions.float().reshape(len(positions), -1, 1) * inverse
    return torch.stack([angles.cos(), angles.sin()])[:, :, :, None, None]
