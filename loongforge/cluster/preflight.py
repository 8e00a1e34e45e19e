"""Checks the nodes of a cluster before a run: versions, devices, a collective, the shared run folder."""

from __future__ import annotations

import os
import platform
import socket
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.distributed as dist

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.kernels.backend import Backend, select
from loongforge.parallel.session import joined_world

_PACKAGES = ("loongforge", "torch", "megatron-core", "transformers", "numpy")


@dataclass(frozen=True)
class Node:
    """What one rank sees."""

    rank: int
    host: str
    backend: str
    versions: dict[str, str]
    devices: int
    local_ranks: int
    sum_is_right: bool
    sum_seconds: float
    sees_run_dir: bool


def preflight(config: Config) -> list[Node]:
    """Looks at every rank's place. Collective over the given world.

    Returns:
        What each rank sees, on every rank.

    Raises:
        UserError: on every rank, everything that would make the run fail.
    """
    backend = select(config.backend)
    with joined_world(backend) as world:
        token = [f"{os.getpid()}-{time.time_ns()}" if world.rank == 0 else ""]
        dist.broadcast_object_list(token)
        right, seconds = _sum(backend, world.rank, world.size)
        mine = Node(
            rank=world.rank,
            host=socket.gethostname(),
            backend=backend.name,
            versions=_versions(),
            devices=backend.device_count(),
            local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            sum_is_right=right,
            sum_seconds=seconds,
            sees_run_dir=_sees(config, token[0], world.rank),
        )
        nodes: list[Node] = [mine] * world.size
        dist.all_gather_object(nodes, mine)
    found = problems(nodes, str(config.run.dir))
    if found:
        raise UserError("the nodes are not fit for this run:" + "".join(f"\n  - {line}" for line in found))
    return nodes


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _sum(backend: Backend, rank: int, size: int) -> tuple[bool, float]:
    """Whether a sum over all ranks is right, and how long the second one of 4 MB took, in seconds."""
    values = torch.full((1 << 20,), float(rank + 1), device=backend.torch_device_type)
    dist.all_reduce(values.clone())
    start = time.perf_counter()
    dist.all_reduce(values)
    right = bool((values.cpu() == size * (size + 1) / 2).all())
    return right, time.perf_counter() - start


def _sees(config: Config, token: str, rank: int) -> bool:
    """Whether this rank reads in `run.dir` what rank 0 has written there."""
    folder = Path(str(config.run.dir))
    note = folder / f".preflight-{token}"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        note.write_text(token)
    dist.barrier()
    seen = note.is_file() and note.read_text() == token
    dist.barrier()
    if rank == 0:
        note.unlink()
    return seen


def problems(nodes: list[Node], run_dir: str) -> list[str]:
    """What would make the run fail, by node."""
    first, found = nodes[0], []
    for node in nodes:
        where = f"{node.host} (rank {node.rank})"
        if not node.sum_is_right:
            found.append(f"{where}: a sum over all ranks came out wrong")
        if not node.sees_run_dir:
            found.append(f"{where} does not see run.dir={run_dir} of {first.host}: it must be on a shared file system")
        if node.backend != first.backend:
            found.append(f"{where} has backend {node.backend}, {first.host} has {first.backend}")
        if node.backend != "cpu" and node.local_ranks > node.devices:
            found.append(f"{where}: {node.local_ranks} ranks for {node.devices} devices (cluster.processes_per_node)")
        differing = {name: text for name, text in node.versions.items() if text != first.versions[name]}
        for name, text in differing.items():
            found.append(f"{where} has {name} {text}, {first.host} has {first.versions[name]}")
    return found


def table(nodes: list[Node]) -> str:
    """One line for each host."""
    hosts = {node.host: node for node in reversed(nodes)}
    slowest = max(node.sum_seconds for node in nodes)
    lines = [
        f"  {host}: {node.backend}, {node.local_ranks} ranks, torch {node.versions['torch']}"
        for host, node in sorted(hosts.items())
    ]
    return "\n".join([*lines, f"  4 MB summed over {len(nodes)} ranks in {1000 * slowest:.1f} ms, run.dir seen by all"])


def as_json(nodes: list[Node]) -> list[dict[str, object]]:
    """Plain values."""
    return [asdict(node) for node in nodes]
