"""Rotary position angles (RoFormer, arXiv 2104.09864) and their stretches for long contexts."""

from __future__ import annotations

import math

import torch

from loongforge.components.llm.llama.config import LlamaConfig
from loongforge.components.llm.llama.rope_scaling import RopeScalingConfig
from loongforge.components.transformer.cache import CachedStep


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


class NearbyAngles:
    """Cosines and sines of some hundred positions, which generation passes one after another."""

    SIZE = 512

    def __init__(self) -> None:
        self._first, self._table = 0, torch.zeros(2, 0)

    def at(self, step: CachedStep, inverse: torch.Tensor, scale: float) -> torch.Tensor:
        """As `cos_sin` of the positions of a step's tokens, times a scale."""
        low, last = min(step.first_positions), max(step.first_positions)
        if last + step.tokens - low > self.SIZE:
            return cos_sin(inverse, step.positions) * scale
        if not self._first <= low <= last + step.tokens <= self._first + self._table.shape[1]:
            positions = torch.arange(low, low + self.SIZE, device=inverse.device)
            self._first, self._table = low, cos_sin(inverse, positions) * scale
        if low == last:
            return self._table.narrow(1, low - self._first, step.tokens)
        chosen = self._table.index_select(1, (step.positions - self._first).flatten())
        return chosen.view(2, *step.positions.shape, *chosen.shape[3:])


def frequency_axes(config: LlamaConfig) -> torch.Tensor | None:
    """int64 `[head_dim / 2]`: the axis of positions that each frequency turns with; None: there is one axis."""
    if config.mrope_section is None:
        return None
    return torch.repeat_interleave(torch.arange(len(config.mrope_section)), torch.tensor(config.mrope_section)) % 3


def cos_sin_of_axes(inverse: torch.Tensor, positions: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Cosines and sines of int64 `positions` `[3, B, S]`: float32 `[2, S, B, 1, 1, head_dim / 2]`."""
    angles = positions.float()[axes].permute(2, 1, 0) * inverse  # [S, B, head_dim / 2]
    return torch.stack([angles.cos(), angles.sin()])[:, :, :, None, None]
