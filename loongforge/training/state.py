"""Weights and optimizer of a run, to and from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loongforge.checkpoint.sharded import read_state, unsharded, write_state
from loongforge.model.vlm import VisionLanguageModel
from loongforge.model.weights import model_state, require_stored, set_weights, sharding_metadata
from loongforge.parallel.groups import Groups
from loongforge.parallel.session import gather_lists
from loongforge.training.optimizer import Optimizers


def _state(model: VisionLanguageModel, optimizers: Optimizers, groups: Groups, *, loading: bool) -> dict[str, Any]:
    weights = model_state(model, groups)
    optimizer = {
        name: part.optimizer.sharded_state_dict(
            weights[name], is_loading=loading, metadata=sharding_metadata(groups, name)
        )
        for name, part in optimizers.parts.items()
    }
    return {"model": weights, "optimizer": optimizer}


def save_training(path: Path, model: VisionLanguageModel, optimizers: Optimizers, groups: Groups) -> None:
    """Writes weights and optimizer. Collective over the world."""
    state = _state(model, optimizers, groups, loading=False)
    # what is not sharded is written by rank 0, which may not hold every component
    firsts = {name: grid.ranks[0] for name, grid in groups.layout.grids().items()}
    mine = [(name, unsharded(part)) for name, part in state["optimizer"].items() if firsts[name] == groups.rank]
    for name, common in gather_lists(mine):
        state["optimizer"].setdefault(name, common)
    write_state(state, path)


def load_training(path: Path, model: VisionLanguageModel, optimizers: Optimizers, groups: Groups) -> None:
    """Reads weights and optimizer, written under any layout. Collective over the world."""
    template = _state(model, optimizers, groups, loading=True)
    require_stored(template, path)
    state = read_state(template, path)
    set_weights(model, state["model"])
    with torch.no_grad():
        for name, part in optimizers.parts.items():
            part.optimizer.load_state_dict(state["optimizer"][name])
