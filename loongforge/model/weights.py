"""Sharded weights of the composed model, for megatron-core's distributed checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

from loongforge.checkpoint.sharded import differences, read_state, stored_names
from loongforge.components.lora import is_adapter
from loongforge.config.errors import UserError
from loongforge.config.saved import load_config
from loongforge.model.vlm import VisionLanguageModel
from loongforge.parallel.groups import Groups

# Optimizer shards that any number of ranks can read again.
_FORMAT = dict(
    distrib_optim_sharding_type="fully_reshardable",
    distrib_optim_fully_reshardable_mem_efficient=False,
    chained_optim_avoid_prefix=True,
)


def sharding_metadata(groups: Groups, name: str) -> dict[str, Any]:
    """How a component's shards are described to megatron-core."""
    collection = groups.of(name)
    assert collection is not None
    return {**_FORMAT, "dp_cp_group": collection.dp_cp}


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
            state[name] = module.sharded_state_dict(metadata=sharding_metadata(groups, name))
            add_prefix_for_sharding(state[name], f"{name}.")
    return state


def set_weights(model: VisionLanguageModel, state: dict[str, Any], *, strict: bool = True) -> None:
    """Takes over what `read_state` returned for the components that it holds, by default all of their parameters."""
    for name, module in model.components().items():
        if name in state:
            module.load_state_dict(state[name], strict=strict)


def load_weights(
    path: Path,
    model: VisionLanguageModel,
    groups: Groups,
    names: list[str] | None = None,
    *,
    new_adapters: bool = False,
) -> None:
    """Reads weights only, written under any layout. Collective over the world.

    Args:
        path: A checkpoint.
        model: This rank's parts.
        groups: Of all components.
        names: Components to read; None: all.
        new_adapters: Leave adapters that are not there as they are.

    Raises:
        UserError: a weight is not there, or has another shape.
    """
    template = {"model": model_state(model, groups, names)}
    if new_adapters:
        _leave_out_missing_adapters(template, path)
    require_stored(template, path, model)
    set_weights(model, read_state(template, path)["model"], strict=not new_adapters)


def _leave_out_missing_adapters(template: dict[str, Any], path: Path) -> None:
    stored = stored_names(path)
    for state in template["model"].values():
        for name in [name for name, tensor in state.items() if is_adapter(name) and tensor.key not in stored]:
            del state[name]


def _is_same_vocabulary(path: Path, model: VisionLanguageModel) -> bool:
    """Tensor-parallel ranks pad the vocabulary, so the shapes of its tensors do not tell."""
    config = path / "config.yaml"
    if model.llm is None or not config.is_file():
        return False
    return bool(load_config(config)["model"]["llm"]["vocab_size"] == model.llm.vocab_size)


def require_stored(template: dict[str, Any], path: Path, model: VisionLanguageModel) -> None:
    """Checks that a checkpoint holds what a template asks for, in the same shapes.

    Args:
        template: Of `model`.
        path: A checkpoint.
        model: This rank's parts.

    Raises:
        UserError: naming the first few tensors that differ.
    """
    found = differences(template, path, same_vocabulary=_is_same_vocabulary(path, model))
    if found:
        more = f"\n  - and {len(found) - 5} more" if len(found) > 5 else ""
        lines = "".join(f"\n  - {line}" for line in found[:5])
        raise UserError(f"{path} does not hold what the recipe describes:{lines}{more}")
