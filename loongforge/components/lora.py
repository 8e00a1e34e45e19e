"""Which linear layers of a component get a low-rank adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

from loongforge.components.hf import NameMap
from loongforge.components.sharding import full_shape, global_names, is_gated, take_shard
from loongforge.components.trainable import ALL_LINEAR, is_adapted
from loongforge.components.transformer.lora import Adaptable, LowRank
from loongforge.config.errors import did_you_mean
from loongforge.config.schema import LoraConfig


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora." in name


def add_adapters(
    module: torch.nn.Module,
    settings: LoraConfig,
    name_map: NameMap | None,
    *,
    group: torch.distributed.ProcessGroup,
) -> None:
    """Adds the adapters that the recipe asks for to this rank's shard.

    Args:
        module: A component.
        settings: `model.<component>.lora`.
        name_map: Hugging Face names, by which targets are called; None: ours.
        group: Tensor-parallel ranks.
    """
    for global_name, linear, names in _adaptable(module, name_map):
        wanted = [is_adapted(name, settings.targets) for name in names]
        if any(wanted):
            owners = _owners(global_name, linear, module, name_map, wanted, group)
            linear.lora = LowRank(linear, settings, owners, sum(wanted))


def _adaptable(module: torch.nn.Module, name_map: NameMap | None) -> Iterator[tuple[str, Adaptable, list[str]]]:
    """(global name of the weight, layer, names of the layers that it stands for)."""
    globally = global_names(module)
    for name, part in module.named_modules():
        if not isinstance(part, Adaptable):
            continue
        if f"{name}.weight" in globally and not name.endswith("output_layer"):
            weight = globally[f"{name}.weight"]
            names = [weight] if name_map is None else name_map.bare_names(weight)
            yield weight, part, [n.removesuffix(".weight") for n in names]


def linear_layers(module: torch.nn.Module, name_map: NameMap | None) -> list[str]:
    """Names by which targets call this rank's linear layers."""
    return [name for _, _, names in _adaptable(module, name_map) for name in names]


def unmatched_target(component: str, target: str, layers: Iterable[str]) -> str:
    """What to say of a target that no layer of any rank matches."""
    kinds = sorted({name.rpartition(".")[2] for name in layers})
    return (
        f"model.{component}.lora.targets: no linear layer's name ends with '{target}'."
        f"{did_you_mean(target, kinds)} Allowed: {ALL_LINEAR}, {', '.join(kinds)}, or longer ends of such names"
    )


def _owners(
    name: str,
    linear: Adaptable,
    module: torch.nn.Module,
    name_map: NameMap | None,
    wanted: list[bool],
    group: torch.distributed.ProcessGroup,
) -> torch.Tensor:
    """int64 `[out]`: the adapter, among the wanted ones, of each output feature of this rank; -1: none."""
    weight = linear.weight
    num_out = full_shape(weight, group.size())[0]
    places = torch.arange(num_out)[:, None]
    parts = [places] if name_map is None else name_map.find(name)[0].split(places)
    owners = torch.full((num_out, 1), -1)
    number = 0
    for part, takes in zip(parts, wanted, strict=True):
        if takes:
            owners[part.flatten()] = number
            number += 1
    if getattr(weight, "partition_dim", -1) == 0:
        owners = take_shard(owners, weight, rank=group.rank(), tp=group.size(), gated=is_gated(module, name))
    return owners.flatten()


def _parts(
    weight: str, full: Mapping[str, torch.Tensor], settings: LoraConfig, names: NameMap
) -> Iterator[tuple[list[str], torch.Tensor | None, torch.Tensor]]:
    """(spellings of their layer, A or None, B) of each of their layers that a layer of ours stands for."""
    prefix = weight.removesuffix("weight")
    adapters = iter(full[f"{prefix}lora.a"].split(settings.rank))
    theirs = [[name.removesuffix(".weight") for name in candidates] for candidates in names.sources(weight)]
    bare = [name.removesuffix(".weight") for name in names.bare_names(weight)]
    for name, spellings, b in zip(bare, theirs, names.find(weight)[0].split(full[f"{prefix}lora.b"]), strict=True):
        yield spellings, next(adapters) if is_adapted(name, settings.targets) else None, b


def _adapted_weights(full: Mapping[str, torch.Tensor]) -> list[str]:
    return [name.removesuffix("lora.a") + "weight" for name in full if name.endswith(".lora.a")]


def to_peft(
    full: Mapping[str, torch.Tensor],
    settings: LoraConfig,
    names: NameMap,
    spell: Callable[[list[str]], str] = lambda spellings: spellings[0],
) -> dict[str, torch.Tensor]:
    """Adapters as peft names them.

    Args:
        full: Full tensors of a component by global name, from `gather_parameters`.
        settings: Of the component.
        names: Hugging Face names.
        spell: Chooses among the spellings of a layer.

    Returns:
        `<their layer>.lora_A.weight` `[rank, in]` and `<their layer>.lora_B.weight` `[out, rank]`.
    """
    found = {}
    for weight in _adapted_weights(full):
        for spellings, a, b in _parts(weight, full, settings, names):
            if a is not None:
                name = spell(spellings)
                found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = a, b
    return found


def merged(full: Mapping[str, torch.Tensor], settings: LoraConfig, names: NameMap) -> dict[str, torch.Tensor]:
    """Full tensors of a component without adapters: each weight with `alpha / rank * B A` added, in float32; a weight
    without an adapter is as it was.

    Args:
        full: Full tensors of a component by global name.
        settings: Of the component.
        names: Hugging Face names.
    """
    found = {name: tensor for name, tensor in full.items() if not is_adapter(name)}
    for weight in _adapted_weights(full):
        changes = [
            torch.zeros(len(b), full[weight].shape[1]) if a is None else b.float() @ a.float()
            for _, a, b in _parts(weight, full, settings, names)
        ]
        scale = settings.alpha / settings.rank
        found[weight] = full[weight].float() + scale * names.find(weight)[0].join(changes)
    return found
