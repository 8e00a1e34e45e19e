"""Whole parameters and their shards: names that no layout changes, slices, first weights.

The *global name* of a parameter counts layers over all pipeline stages. Its *full tensor* is what one process holds.
Every way into the weights (drawing them, loading them from elsewhere) makes full tensors and slices them here, so
every layout starts from the same model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_block import TransformerBlock

_GATED = ("linear_fc1.weight", "linear_fc1.lora.b")
_TIED_COPY = "output_layer.weight"


def mark_tensor_parallel(module: torch.nn.Module) -> None:
    """Notes on each sharded weight which axis is divided (megatron-core does so only where it draws the weights)."""
    axes = {ColumnParallelLinear: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}
    for part in module.modules():
        axis = next((axis for kind, axis in axes.items() if isinstance(part, kind)), None)
        weight = getattr(part, "weight", None)
        if axis is not None and weight is not None and not hasattr(weight, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(weight, True, axis, 1)


def _layer_offset(block: TransformerBlock) -> int:
    return block.layers[0].layer_number - 1 if len(block.layers) else 0


def global_names(module: torch.nn.Module) -> dict[str, str]:
    """Local parameter name -> global name, for this rank's shard of a component."""
    blocks = [(name, part) for name, part in module.named_modules() if isinstance(part, TransformerBlock)]
    names = {name: name for name, _ in module.named_parameters()}
    for block_name, block in blocks:
        prefix = f"{block_name}.layers."
        for name in [n for n in names if n.startswith(prefix)]:
            index, rest = name.removeprefix(prefix).split(".", 1)
            names[name] = f"{prefix}{int(index) + _layer_offset(block)}.{rest}"
    if getattr(module, "share_embeddings_and_output_weights", False) and _TIED_COPY in names:
        names[_TIED_COPY] = "embedding.word_embeddings.weight"  # the last pipeline stage's copy
    return names


def global_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """This rank's parameters by global name."""
    names = global_names(module)
    for name, param in module.named_parameters():
        yield names[name], param


def is_gated(module: torch.nn.Module, name: str) -> bool:
    """Whether a parameter's first axis stacks gate and up projection."""
    return name.endswith(_GATED) and bool(getattr(getattr(module, "config", None), "gated_linear_unit", False))


def pad_to(param: torch.Tensor, size: int) -> None:
    """Notes that the full tensor has `size` entries along the divided axis, fewer than all shards together: the last
    ones of these are zeros that nothing depends on."""
    param.full_size = size  # type: ignore[attr-defined]


def is_padded(param: torch.Tensor) -> bool:
    """Whether shards together are larger than the full tensor."""
    return hasattr(param, "full_size")


def full_shape(param: torch.Tensor, tp: int) -> tuple[int, ...]:
    """Shape of the full tensor that this shard is a part of."""
    shape = list(param.shape)
    if getattr(param, "tensor_model_parallel", False):
        axis = param.partition_dim  # type: ignore[attr-defined]
        shape[axis] = getattr(param, "full_size", shape[axis] * tp)
    return tuple(shape)


def take_shard(full: torch.Tensor, param: torch.Tensor, *, rank: int, tp: int, gated: bool = False) -> torch.Tensor:
    """The slice of a full tensor that belongs to tensor-parallel rank `rank`.

    Args:
        full: The full tensor.
        param: The shard that it is for; says which axis is divided.
        rank: Tensor-parallel rank.
        tp: Tensor-parallel size.
        gated: The first axis stacks gate and up projection, each divided on its own.
    """
    if not getattr(param, "tensor_model_parallel", False):
        return full
    axis = param.partition_dim  # type: ignore[attr-defined]
    if is_padded(param):
        assert axis == 0 and not gated
        rows = full[rank * len(param) : (rank + 1) * len(param)]
        return torch.cat([rows, rows.new_zeros(len(param) - len(rows), *rows.shape[1:])])
    halves = full.chunk(2, axis) if gated else (full,)
    return torch.cat([half.chunk(tp, axis)[rank] for half in halves], axis)


def join_shards(shards: list[torch.Tensor], param: torch.Tensor, *, gated: bool = False) -> torch.Tensor:
    """The full tensor from the shards of all tensor-parallel ranks; inverse of `take_shard`."""
    if not getattr(param, "tensor_model_parallel", False):
        return shards[0]
    axis = param.partition_dim  # type: ignore[attr-defined]
    if not gated:
        joined = torch.cat(shards, axis)
        return joined.narrow(axis, 0, getattr(param, "full_size", joined.shape[axis]))
    pairs = [shard.chunk(2, axis) for shard in shards]
    return torch.cat([gate for gate, _ in pairs] + [up for _, up in pairs], axis)


@dataclass(frozen=True)
class Shard:
    """One of this rank's parameters, and where it lies in its full tensor."""

    name: str
    """Global name."""
    param: torch.nn.Parameter
    shape: tuple[int, ...]
    """Of the full tensor."""
    rank: int
    tp: int
    gated: bool
    """The first axis stacks gate and up projection, each divided on its own."""

    @property
    def axis(self) -> int | None:
        """Which axis is divided; None: the parameter is whole."""
        divided = self.tp > 1 and getattr(self.param, "tensor_model_parallel", False)
        return self.param.partition_dim if divided else None  # type: ignore[attr-defined, no-any-return]

    def take(self, full: torch.Tensor) -> torch.Tensor:
        """This rank's slice of the full tensor."""
        return take_shard(full, self.param, rank=self.rank, tp=self.tp, gated=self.gated)


def shards(module: torch.nn.Module, group: torch.distributed.ProcessGroup) -> Iterator[Shard]:
    """Every parameter of this rank's shard of a component."""
    rank, tp = group.rank(), group.size()
    for name, param in global_parameters(module):
        yield Shard(name, param, full_shape(param, tp), rank, tp, is_gated(module, name))


@torch.no_grad()
def fill_parameters(
    module: torch.nn.Module,
    full_tensor: Callable[[str, tuple[int, ...]], torch.Tensor],
    group: torch.distributed.ProcessGroup,
    only: Callable[[str], bool] = lambda name: True,
) -> None:
    """Sets this rank's shard of the parameters that `only` names to its slice of `full_tensor(global name, shape)`."""
    for shard in shards(module, group):
        if not only(shard.name):
            continue
        shard.param.copy_(shard.take(full_tensor(shard.name, shard.shape)))


@torch.no_grad()
def gather_parameters(
    module: torch.nn.Module,
    group: torch.distributed.ProcessGroup,
    value: Callable[[torch.nn.Parameter], torch.Tensor | None] = lambda param: param.detach(),
) -> dict[str, torch.Tensor]:
    """Full tensors by global name of what `value` takes from each parameter (itself, its gradient ...; None: nothing).

    Collective over the tensor-parallel group; covers this pipeline stage.
    """
    full = {}
    for name, param in global_parameters(module):
        taken = value(param)
        if taken is None:
            continue
        local = taken.contiguous()
        if not getattr(param, "tensor_model_parallel", False):
            full[name] = local.clone()
            continue
        shards = [torch.empty_like(local) for _ in range(group.size())]
        torch.distributed.all_gather(shards, local, group=group)
        full[name] = join_shards(shards, param, gated=is_gated(module, name))
    return full


def draw_parameters(
    module: torch.nn.Module,
    *,
    component: str,
    seed: int,
    std: float,
    group: torch.distributed.ProcessGroup,
    only: Callable[[str], bool] = lambda name: True,
) -> None:
    """First weights: norm weights 1, biases 0, adapters as peft draws them, everything else N(0, std).

    Each parameter is a pure function of the seed, the component and its global name, so no layout changes it.
    """

    def full_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith((".bias", ".lora.b")):
            return torch.zeros(shape)
        if len(shape) == 1 and name.endswith(".weight"):
            return torch.ones(shape)
        # torch's host generator reads the low 32 bits of its seed only
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}.{component}.{name}".encode()))
        if name.endswith(".lora.a"):
            return torch.empty(shape).uniform_(-1, 1, generator=generator) / shape[1] ** 0.5
        return torch.randn(shape, generator=generator) * std

    fill_parameters(module, full_tensor, group, only)
