"""The weights of a run and the state of its optimizer: written to a checkpoint, and read back under any layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from loongforge.checkpoint.sharded import read_state, unsharded, write_state
from loongforge.config.errors import UserError
from loongforge.config.saved import load_config, to_tree
from loongforge.config.schema import Config, OptimizerConfig, TrainerConfig
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
    require_stored(template, path, model)
    state = read_state(template, path)
    set_weights(model, state["model"])
    with torch.no_grad():
        for name, part in optimizers.parts.items():
            part.optimizer.load_state_dict(state["optimizer"][name])


def check_same_form(config: Config, path: Path) -> None:
    """Refuses a checkpoint that keeps the optimizer's state in another form than the recipe's.

    Raises:
        UserError: naming what differs.
    """
    stored, wanted = _forms(load_config(path / "config.yaml")), _forms(to_tree(config))
    differing = [key for key in wanted if stored.get(key, wanted[key]) != wanted[key]]
    if differing:
        lines = "".join(f"\n  - {key}: {wanted[key]}, there {stored[key]}" for key in differing)
        raise UserError(
            f"{path} keeps the optimizer's state in another form:{lines}\n"
            "go on with its values, or take only its weights into a new run: model.COMPONENT.init_from"
        )


def _forms(tree: dict[str, Any]) -> dict[str, str]:
    """What decides the form of the optimizer's state, by the keys of the recipe."""
    distributed = tree["optimizer"].get("distributed", OptimizerConfig.distributed)
    precision = tree["trainer"].get("precision", TrainerConfig.precision)
    forms = {"optimizer.distributed": str(distributed).lower()}
    for name, part in tree["model"].items():
        if isinstance(part, dict) and not part.get("freeze"):
            forms[f"model.{name}.dtype (null: trainer.precision)"] = part.get("dtype") or precision
    return forms
