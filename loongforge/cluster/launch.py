"""From a recipe and its `cluster` section to what runs: a command here, a batch script, a manifest."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loongforge.cluster.environment import exports
from loongforge.cluster.kubernetes import job_set, pytorch_job
from loongforge.cluster.node import Job, node_script
from loongforge.cluster.slurm import batch_script
from loongforge.config.errors import UserError
from loongforge.config.schema import Config


@dataclass(frozen=True)
class Launch:
    """What would run."""

    text: str
    """Script or manifest."""
    command: tuple[str, ...]
    """Takes it on its standard input."""


def prepare(config: Config, overrides: Sequence[str]) -> Launch:
    """What starts a run.

    Args:
        config: The recipe, with a cluster.
        overrides: Of the command line; those of the cluster are dropped.

    Raises:
        UserError: no cluster, or a setting that its kind needs is missing.
    """
    cluster = config.cluster
    if cluster is None:
        raise UserError("no cluster given: add cluster=slurm, cluster=torchrun ... (configs/cluster), and its keys")
    words = [word for word in overrides if not re.match(r"[+~]*cluster\b", word)]
    by_hand = cluster.kind == "torchrun" and cluster.nodes > 1
    run_dir = config.run.dir
    if run_dir is None:
        if by_hand:
            raise UserError("run.dir is missing: a folder that all nodes share, the same on every node")
        # nodes and restarts must agree on the folder, so it is chosen now
        run_dir = f"runs/{config.name}/{time.strftime('%Y%m%d-%H%M%S')}"
        words.append(f"run.dir={run_dir}")
    identity = None if by_hand else time.strftime("%Y%m%d-%H%M%S")
    job = Job(_dns_name(config.name), cluster, words, exports(cluster), run_dir, identity)
    return _KINDS[cluster.kind](job)


def _here(job: Job) -> Launch:
    endpoint = job.cluster.endpoint
    if endpoint is None:
        if job.cluster.nodes > 1:
            raise UserError("cluster.endpoint is missing: the host of the first node, the same on every node")
        endpoint = "localhost"
    return Launch(node_script(job, endpoint), ("bash", "-s"))


def _slurm(job: Job) -> Launch:
    return Launch(batch_script(job), ("sbatch",))


def _pytorch_job(job: Job) -> Launch:
    return Launch(pytorch_job(job), ("kubectl", "apply", "-f", "-"))


def _job_set(job: Job) -> Launch:
    return Launch(job_set(job), ("kubectl", "apply", "-f", "-"))


_KINDS: dict[str, Callable[[Job], Launch]] = {
    "torchrun": _here,
    "slurm": _slurm,
    "pytorchjob": _pytorch_job,
    "jobset": _job_set,
}


def _dns_name(name: str) -> str:
    """A name that Kubernetes takes, short enough for the names that it makes of it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].rstrip("-") or "run"


def start(launch: Launch) -> int:
    """Hands it over; returns the exit code.

    Raises:
        UserError: the command is not installed here.
    """
    try:
        return subprocess.run(launch.command, input=launch.text.encode(), check=False).returncode
    except FileNotFoundError as error:
        raise UserError(f"'{launch.command[0]}' is not on this machine; --dry-run prints what it would get") from error
