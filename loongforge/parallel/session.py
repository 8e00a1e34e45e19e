"""Joining the world of processes: one call at the start of every process that builds a model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from loongforge.kernels.backend import Backend, start
from loongforge.parallel.native_output import native_output_on_stderr

Item = TypeVar("Item")

_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> World:
        """As the launcher, torchrun or Slurm's translation left it; one process where nothing is set."""
        names = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        return cls(*(int(os.environ.get(name, default)) for name, default in names))


@contextlib.contextmanager
def joined_world(backend: Backend) -> Iterator[World]:
    """Starts the backend on this process's device and joins the default process group; leaves it at the end.

    A rank of several that fails does not leave: its peers would fail over that before anybody knows why. It ends.

    Args:
        backend: Whose devices and collectives to use.
    """
    world = World.from_environment()
    start(backend, world.local_rank)
    from megatron.core import parallel_state  # after the backend is active

    with native_output_on_stderr():
        if world.size == 1:
            dist.init_process_group(backend.dist_backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend.dist_backend, timeout=_TIMEOUT)
    failed = True
    try:
        yield world
        failed = False
    finally:
        if not failed or world.size == 1:
            parallel_state.destroy_model_parallel()  # so that this process can join another world later
            if dist.is_initialized():
                dist.destroy_process_group()


def sum_over_world(values: torch.Tensor) -> torch.Tensor:
    """Sums in place over all ranks; returns its argument."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_lists(mine: list[Item]) -> list[Item]:
    """All ranks' lists, one after another, on every rank. Collective over the world."""
    if dist.get_world_size() == 1:
        return mine
    everyone: list[list[Item]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, mine)
    return [item for part in everyone for item in part]


def broadcast_object(value: object) -> object:
    """Rank 0's value on every rank."""
    if dist.get_world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
