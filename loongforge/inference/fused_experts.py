"""Adapters of experts for peft: transformers holds the experts of a layer in two stacked parameters, and peft adapts a
parameter as a whole (`target_parameters`, `peft.tuners.lora.layer.ParamWrapper`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from loongforge.config.schema import LoraConfig

_EXPERT = re.compile(r"(?P<module>.*\.experts)\.(?P<number>\d+)\.(?P<layer>\w+)\.lora_(?P<matrix>[AB])\.weight")
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Parameters in the order in which the module has them, and what is stacked in each along the output."""

Adapter = tuple[torch.Tensor, torch.Tensor]


@dataclass
class FusedAdapters:
    """What becomes of a component's adapters."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    """As peft's `adapter_model.safetensors` names them, without its prefix."""
    parameters: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Rank and alpha of each stacked parameter that is adapted."""


def fuse(adapters: Mapping[str, torch.Tensor], settings: LoraConfig, num_experts: int) -> FusedAdapters:
    """Puts together the adapters of a layer's experts; leaves others as they are.

    What is stacked along the output gets the adapters side by side: the rank is their sum, and so is alpha. An expert
    without one gets zeros.

    Args:
        adapters: From `to_peft`, one for each linear layer of each expert.
        settings: Of the component.
        num_experts: Of a layer.
    """
    found, experts = FusedAdapters(), dict[str, dict[tuple[int, str], dict[str, torch.Tensor]]]()
    for name, tensor in adapters.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            found.tensors[name] = tensor
        else:
            key = int(match["number"]), match["layer"]
            experts.setdefault(match["module"], {}).setdefault(key, {})[match["matrix"]] = tensor
    for module, parts in experts.items():
        _fuse_module(module, {key: (part["A"], part["B"]) for key, part in parts.items()}, settings, num_experts, found)
    return found


def _fuse_module(
    module: str, parts: Mapping[tuple[int, str], Adapter], settings: LoraConfig, num_experts: int, found: FusedAdapters
) -> None:
    """peft wraps the module once for each adapted parameter; the last one is outside, and has no `base_layer`."""
    adapted = [name for name, layers in _STACKED.items() if any(layer in layers for _, layer in parts)]
    for depth, name in enumerate(reversed(adapted)):
        layers = [layer for layer in _STACKED[name] if any(layer == own for _, own in parts)]
        whole = [_side_by_side(parts, number, name, layers) for number in range(num_experts)]
        place = module + depth * ".base_layer"
        found.tensors[f"{place}.lora_A.weight"] = torch.cat([a for a, _ in whole])  # an expert's ranks together
        found.tensors[f"{place}.lora_B.weight"] = torch.stack([b for _, b in whole], -1).flatten(1)  # a rank's experts
        found.parameters[f"{module}.{name}"] = settings.rank * len(layers), settings.alpha * len(layers)


def _side_by_side(parts: Mapping[tuple[int, str], Adapter], number: int, name: str, layers: list[str]) -> Adapter:
    """A `[layers * rank, in]` and B `[out, layers * rank]` of one expert's stacked parameter."""
    a_like, b_like = next(adapter for (_, layer), adapter in parts.items() if layer in layers)
    zeros = torch.zeros_like(a_like), torch.zeros_like(b_like)
    known = {layer: parts.get((number, layer), zeros) for layer in layers}
    columns = []
    for own in layers:
        rows = [known[own][1] if layer == own else torch.zeros_like(b_like) for layer in _STACKED[name]]
        columns.append(torch.cat(rows))
    return torch.cat([known[layer][0] for layer in layers]), torch.cat(columns, 1)
