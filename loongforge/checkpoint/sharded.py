"""Sharded state on disk: megatron-core's distributed checkpoints, written by this process itself.

The shipped strategy hands the writing to a process that it spawns (5 s at the first save). Ours writes the same files
through torch's own writer; megatron-core reads them under any layout.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.strategies import torch as strategies
from megatron.core.dist_checkpointing.utils import extract_nonpersistent, extract_sharded_base


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch announces the end of the ShardedTensor that megatron-core uses, several times a call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


class _InProcessStrategy(strategies.TorchDistSaveShardedStrategy):
    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        named, _, _ = strategies._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        planner = strategies.MCoreSavePlanner(
            dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
        )
        writer = dcp.FileSystemWriter(checkpoint_dir, single_file_per_rank=True, sync_files=True, thread_count=1)
        dcp.save(strategies.mcore_to_pyt_state_dict(named, False), storage_writer=writer, planner=planner)


def unsharded(state: dict[str, Any]) -> dict[str, Any]:
    """The part of a state that is the same on every rank that has it."""
    _, rest = extract_nonpersistent(state)
    _, common = extract_sharded_base(rest)
    return common


def write_state(state: dict[str, Any], path: Path) -> None:
    """Writes a state. Collective over the world.

    Args:
        state: Nested dict of megatron-core ShardedTensors and ShardedObjects; other values are rank 0's.
        path: An existing, empty folder.
    """
    strategy = _InProcessStrategy("torch_dist", 1)
    with _quiet():
        dist_checkpointing.save(state, str(path), strategy, validate_access_integrity=dist.get_world_size() > 1)


def read_state(template: dict[str, Any], path: Path) -> dict[str, Any]:
    """Reads what a template asks for. Collective over the world.

    Args:
        template: As given to `write_state`, of the layout that reads; values are overwritten.
        path: A folder that `write_state` wrote under any layout.
    """
    with _quiet():
        return dist_checkpointing.load(template, str(path), validate_access_integrity=False)


def stored_names(path: Path) -> set[str]:
    """Names of the tensors in a folder that `write_state` wrote."""
    with _quiet():
        return set(dist_checkpointing.load_tensors_metadata(str(path)))


def differences(template: dict[str, Any], path: Path) -> list[str]:
    """What a template asks for that is not stored, or has another shape there.

    Args:
        template: As for `read_state`.
        path: A folder that `write_state` wrote.
    """
    with _quiet():
        stored = dist_checkpointing.load_tensors_metadata(str(path))
    found = []
    for tensor in nested_values(template):
        if not isinstance(tensor, ShardedTensor):
            continue
        if tensor.key not in stored:
            found.append(f"{tensor.key} is missing")
        elif tuple(stored[tensor.key].global_shape) != tuple(tensor.global_shape):
            found.append(
                f"{tensor.key} has shape {list(stored[tensor.key].global_shape)}, not {list(tensor.global_shape)}"
            )
    return list(dict.fromkeys(found))
