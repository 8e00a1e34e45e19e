"""Sharded state on disk: megatron-core's distributed checkpoints, written by this process itself.

The shipped strategy hands the writing to a process that it spawns (5 s at the first save). Ours writes the same files
through torch's own writer; megatron-core reads them under any layout. Nothing is unpickled (see `tensor_table`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CONFIG_FNAME
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.strategies import torch as strategies
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME, TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.utils import extract_nonpersistent, extract_sharded_base
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from loongforge.checkpoint.json_file import read_json
from loongforge.checkpoint.tensor_table import as_metadata, load_safely, read_table, write_table
from loongforge.config.errors import UserError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch announces the end of the ShardedTensor that megatron-core uses, several times a call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


class _Writer(dcp.FileSystemWriter):
    """Keeps the table of tensors as JSON."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        stored = {result.index: result.storage_data for part in results for result in part}
        write_table(metadata, stored, Path(self.path))


class _Reader(dcp.FileSystemReader):
    """Reads that table; tensors go through torch's weights-only loader, as torch does it."""

    def __init__(self, path: str | Path, cache_metadata: bool = False) -> None:
        super().__init__(path)

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return as_metadata(read_table(Path(self.path)))

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        try:
            return super().read_data(plan, planner)
        except UnpicklingError as error:
            files = sorted({self.storage_data[item.storage_index].relative_path for item in plan.items})
            raise UserError(
                f"{', '.join(str(Path(self.path) / file) for file in files)}: not loaded, since something in it is no "
                f"tensor ({str(error).splitlines()[0]})"
            ) from error


class _LoadPlanner(strategies.MCoreLoadPlanner):
    """Objects are plain values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        found = load_safely(value, f"object '{name}' of the checkpoint")
        if self.flatten_state_dict:
            set_element(self.original_state_dict, self.mappings[name], found)
        else:
            self.state_dict[name] = found


@contextlib.contextmanager
def _in_place(**ours: Any) -> Iterator[None]:
    """Ours under the names by which megatron-core's strategy finds its own: it takes neither as an argument."""
    theirs = {name: getattr(strategies, name) for name in ours}
    for name, value in ours.items():
        setattr(strategies, name, value)
    try:
        yield
    finally:
        for name, value in theirs.items():
            setattr(strategies, name, value)


class _SafeLoad(strategies.TorchDistLoadShardedStrategy):
    """megatron-core's reading with our reader and planner in the places of its own."""

    def load(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> dict[str, Any]:
        with _in_place(_get_filesystem_reader=_Reader, MCoreLoadPlanner=_LoadPlanner):
            return super().load(sharded_state_dict, checkpoint_dir)

    def load_tensors_metadata(self, checkpoint_dir: Path, metadata: Metadata | None = None) -> dict[str, Any]:
        table = metadata or as_metadata(read_table(Path(checkpoint_dir)))
        return super().load_tensors_metadata(checkpoint_dir, table)


class _SafeCommon(TorchCommonLoadStrategy):
    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        file = Path(checkpoint_dir) / COMMON_STATE_FNAME
        return dict(load_safely(file, file))


class _InProcessStrategy(strategies.TorchDistSaveShardedStrategy):
    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        named, _, _ = strategies._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        planner = strategies.MCoreSavePlanner(
            dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
        )
        writer = _Writer(checkpoint_dir, single_file_per_rank=True, sync_files=True, thread_count=1)
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
    read_json(path / CONFIG_FNAME)  # megatron-core does not name the file where it cannot read it
    try:
        with _quiet():
            return dist_checkpointing.load(
                template, str(path), _SafeLoad(), _SafeCommon(), validate_access_integrity=False
            )
    except CheckpointException as error:
        for cause, _ in error.failures.values():
            if isinstance(cause, UserError):
                raise UserError(f"{path}: {cause}") from error
        raise


def stored_names(path: Path) -> set[str]:
    """Names of the tensors in a folder that `write_state` wrote."""
    return set(_stored(path))


def _stored(path: Path) -> dict[str, ShardedTensor]:
    read_json(path / CONFIG_FNAME)
    with _quiet():
        return dict(dist_checkpointing.load_tensors_metadata(str(path), _SafeLoad()))


def differences(template: dict[str, Any], path: Path, *, same_vocabulary: bool = False) -> list[str]:
    """What a template asks for that is not stored, or has another shape there.

    Args:
        template: As for `read_state`.
        path: A folder that `write_state` wrote.
        same_vocabulary: Tensors with a row for each token (megatron-core says `allow_shape_mismatch`) differ in
            padding at most.
    """
    stored = _stored(path)
    found = []
    for tensor in nested_values(template):
        if not isinstance(tensor, ShardedTensor):
            continue
        if tensor.key not in stored:
            found.append(f"{tensor.key} is missing")
            continue
        first = 1 if same_vocabulary and tensor.allow_shape_mismatch else 0
        if tuple(stored[tensor.key].global_shape)[first:] != tuple(tensor.global_shape)[first:]:
            found.append(
                f"{tensor.key} has shape {list(stored[tensor.key].global_shape)}, not {list(tensor.global_shape)}"
            )
    return list(dict.fromkeys(found))
