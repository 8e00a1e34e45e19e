"""The shell script that runs on every node: environment, preflight, training under torchrun's elastic agent."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from loongforge.config.launch_schema import ClusterConfig


@dataclass(frozen=True)
class Job:
    """A run on a cluster."""

    name: str
    """Letters, digits and dashes: Kubernetes takes no others."""
    cluster: ClusterConfig
    overrides: Sequence[str]
    """Of `loongforge train`; they name `run.dir`, which nodes and restarts share."""
    environment: dict[str, str]
    run_dir: str
    """Shared by all nodes."""
    id: str | None
    """Of this launch; None: every node is launched by itself."""


def torchrun(job: Job, endpoint: str, verb: str, *, port: int, restarts: int) -> str:
    """One command line. Every node runs the same; the node of the endpoint holds the rendezvous.

    Args:
        job: The run.
        endpoint: Host of the rendezvous; may be a shell expression.
        verb: Of loongforge.
        port: Of the rendezvous.
        restarts: How often the agents start all ranks again after one has failed.
    """
    cluster = job.cluster
    options = [
        f"--nnodes={cluster.nodes}",
        f"--nproc-per-node={cluster.processes_per_node}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={job.name}-{verb}",
        f"--rdzv-endpoint={endpoint}:{port}",
        f"--rdzv-conf=join_timeout={cluster.join_timeout_s}",
        f"--max-restarts={restarts}",
    ]
    words = " ".join(map(shlex.quote, job.overrides))
    return f"{cluster.python} -m torch.distributed.run {' '.join(options)} \\\n  -m loongforge {verb} {words}"


def node_script(job: Job, endpoint: str) -> str:
    """What a node runs, for bash.

    Args:
        job: The run.
        endpoint: Host of the rendezvous; may be a shell expression.
    """
    cluster = job.cluster
    lines = ["set -euo pipefail"]
    if cluster.directory is not None:
        lines.append(f"cd {shlex.quote(cluster.directory)}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    # with a shared store, torch's agents leave a node that joins after the first round waiting for its address
    lines += ["export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1", *cluster.setup]
    if cluster.preflight:
        lines += ["# versions, devices, a collective and the shared run folder, before anything is loaded"]
        check = torchrun(job, endpoint, "preflight", port=cluster.port + 1, restarts=0)
        lines += [check if job.id is None else _once(job, check)]
    lines += ["# the agents start all ranks again after a failure; they go on from the latest checkpoint in run.dir"]
    lines += [f"exec {torchrun(job, endpoint, 'train', port=cluster.port, restarts=cluster.max_restarts)}"]
    return "\n".join(lines) + "\n"


def _once(job: Job, check: str) -> str:
    """A node that comes back after a failure must not wait for the others in the preflight: they are training."""
    passed = shlex.quote(f"{job.run_dir}/.preflight-{job.id}")
    return f"if [ ! -e {passed} ]; then\n{check}\ntouch {passed}\nfi"
