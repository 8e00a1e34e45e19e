"""Weights and optimizer of a run, to and from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loongforge.checkpoint.sharded import read_state, write_state
from loongforge.model.vlm import VisionLanguageModel
from loongforge.model.weights import model_state, require_stored, set_weights, sharding_metadata
from loongforge.parallel.groups import Groups
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
    write_state(_state(model, optimizers, groups, loading=False), path)


def load_training(path: Path, model: VisionLanguageModel, optimizers: Optimizers, groups: Groups) -> None:
    """Reads weights and optimizer, written under any layout. Collective over the world."""
    template = _state(model, optimizers, groups, loading=True)
    require_stored(template, path)
    state = read_state(template, path)
    set_weights(model, state["model"])
    with torch.no_grad():
        for name, part in optimizers.parts.items():
            part.optimizer.load_state_dict(state["optimizer"][name])
