"""What a checkpoint holds of a run: weights, optimizer, random states, progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

from loongforge.checkpoint.sharded import read_state, write_state
from loongforge.model.vlm import VisionLanguageModel
from loongforge.parallel.groups import Groups
from loongforge.training.optimizer import Optimizers

# Optimizer shards that any number of ranks can read again.
_OPTIMIZER_FORMAT = dict(
    distrib_optim_sharding_type="fully_reshardable",
    distrib_optim_fully_reshardable_mem_efficient=False,
    chained_optim_avoid_prefix=True,
)


def _metadata(groups: Groups, name: str) -> dict[str, Any]:
    collection = groups.of(name)
    assert collection is not None
    return {**_OPTIMIZER_FORMAT, "dp_cp_group": collection.dp_cp}


def model_state(model: VisionLanguageModel, groups: Groups, names: list[str] | None = None) -> dict[str, Any]:
    """Sharded weights of this rank by component: `vision.decoder...`, `llm.embedding...`.

    Args:
        model: This rank's parts.
        groups: Of all components.
        names: Components to take; None: all that this rank holds.
    """
    state = {}
    for name, module in model.components().items():
        if names is None or name in names:
            state[name] = module.sharded_state_dict(metadata=_metadata(groups, name))
            add_prefix_for_sharding(state[name], f"{name}.")
    return state


def _optimizer_state(weights: dict[str, Any], optimizers: Optimizers, groups: Groups, loading: bool) -> dict[str, Any]:
    return {
        name: part.optimizer.sharded_state_dict(weights[name], is_loading=loading, metadata=_metadata(groups, name))
        for name, part in optimizers.parts.items()
    }


def save_training(path: Path, model: VisionLanguageModel, optimizers: Optimizers, groups: Groups) -> None:
    """Writes weights and optimizer. Collective over the world."""
    weights = model_state(model, groups)
    write_state({"model": weights, "optimizer": _optimizer_state(weights, optimizers, groups, False)}, path)


def load_training(path: Path, model: VisionLanguageModel, optimizers: Optimizers, groups: Groups) -> None:
    """Reads weights and optimizer, written under any layout. Collective over the world."""
    weights = model_state(model, groups)
    state = read_state({"model": weights, "optimizer": _optimizer_state(weights, optimizers, groups, True)}, path)
    _set_weights(model, state["model"])
    with torch.no_grad():
        for name, part in optimizers.parts.items():
            part.optimizer.load_state_dict(state["optimizer"][name])


def load_weights(path: Path, model: VisionLanguageModel, groups: Groups, names: list[str] | None = None) -> None:
    """Reads weights only. Collective over the world.

    Args:
        path: Folder of the sharded state.
        model: This rank's parts.
        groups: Of all components.
        names: Components to read; None: all.
    """
    _set_weights(model, read_state({"model": model_state(model, groups, names)}, path)["model"])


def _set_weights(model: VisionLanguageModel, state: dict[str, Any]) -> None:
    for name, module in model.components().items():
        if name in state:
            module.load_state_dict(state[name])
    dist.barrier()
