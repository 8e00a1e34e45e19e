"""How processes are started, here or on a cluster. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class LauncherConfig:
    """Processes on this machine (ignored under torchrun or Slurm, whose world is joined)."""

    nproc: int | None = None
    """Number of processes; null: 1 on CPU, all devices elsewhere."""


@dataclass(kw_only=True)
class SlurmConfig:
    """What `sbatch` wants to know; null: the cluster's default."""

    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account."""
    time: str | None = None
    """Time limit, e.g. `2-00:00:00`."""
    gres: str | None = None
    """Devices of a node, e.g. `gpu:8`."""
    options: list[str] = field(default_factory=list)
    """More lines, e.g. `--constraint=h100`."""


@dataclass(kw_only=True)
class KubernetesConfig:
    """What a manifest needs."""

    namespace: str = "default"
    """Namespace of the job."""
    image: str = "loongforge:latest"
    """Container image with loongforge installed."""
    device: str | None = None
    """Resource name of the devices, e.g. `nvidia.com/gpu`; a pod asks for `processes_per_node` of them."""
    limits: dict[str, str] = field(default_factory=dict)
    """More limits of a pod, e.g. `{cpu: "64", memory: 512Gi, rdma/hca: "8"}`."""
    claim: str | None = None
    """Persistent volume claim that all nodes share, for data and `run.dir`."""
    mount: str = "/shared"
    """Where it is mounted."""


@dataclass(kw_only=True)
class ClusterConfig:
    """How `loongforge launch` starts the run on several nodes; other verbs ignore it."""

    kind: Literal["torchrun", "slurm", "pytorchjob", "jobset"] = "torchrun"
    """`torchrun`: this node's command; `slurm`: a batch script; the others: a Kubernetes manifest."""
    nodes: int = 1
    """Machines."""
    processes_per_node: int = 8
    """Ranks of each: its devices."""
    endpoint: str | None = None
    """Host of the first node (`torchrun` only; elsewhere it is found)."""
    port: int = 29400
    """Of the rendezvous on that host; the preflight takes the next one."""
    max_restarts: int = 3
    """How often all ranks are started again after a failure, from the latest checkpoint."""
    join_timeout_s: int = 1800
    """How long a node waits for the others, at the start and after a failure, in seconds."""
    preflight: bool = True
    """Check the nodes before the run starts."""
    profile: str | None = None
    """Environment of the vendor's nodes: `cuda`, `kunlun`; null: none."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables of your own, over the profile's."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before anything else, e.g. `module load cuda`."""
    directory: str | None = None
    """Working folder on the nodes; null: where the job starts."""
    python: str = "python"
    """Interpreter on the nodes."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
