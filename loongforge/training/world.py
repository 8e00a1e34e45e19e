"""Which processes work together: a world that torchrun or Slurm has made, or one for the launcher to make."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from loongforge.config.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FIRST_SLURM_PORT, _NUM_SLURM_PORTS = 20000, 12000


@dataclass(frozen=True)
class World:
    """This process's place in a world that exists already."""

    rank: int
    size: int


def join_given_world(environ: MutableMapping[str, str] = os.environ) -> World | None:
    """The world of torchrun (`RANK`, `WORLD_SIZE`) or Slurm (`SLURM_PROCID`, `SLURM_NTASKS`), or None.

    Slurm's variables are translated to torch's, in `environ`.

    Raises:
        UserError: the variables contradict one another.
    """
    if "RANK" not in environ and int(environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environ:
        environ.update(_from_slurm(environ))
    if "RANK" not in environ or "WORLD_SIZE" not in environ:
        return None
    missing = [name for name in _TORCHRUN if name not in environ]
    if missing:
        raise UserError(
            f"RANK and WORLD_SIZE are set, but {', '.join(missing)} not: "
            "start with torchrun, or unset RANK and WORLD_SIZE"
        )
    rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if not 0 <= rank < size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}: RANK is 0 to WORLD_SIZE-1")
    return World(rank, size)


def _from_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """torch's variables; those that the user has set stay. The port follows from the job's id, alike on all nodes."""
    found = {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_NTASKS"],
        "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "127.0.0.1")),
        "MASTER_PORT": str(_FIRST_SLURM_PORT + _slurm_number(environ) % _NUM_SLURM_PORTS),
    }
    return {name: environ.get(name, value) for name, value in found.items()}


def _slurm_number(environ: Mapping[str, str]) -> int:
    """Differs between jobs, and between the steps of a job."""
    return int(environ.get("SLURM_JOB_ID", "0")) * 7 + int(environ.get("SLURM_STEP_ID", "0"))


def first_host(nodelist: str) -> str:
    """The first name of a Slurm node list: `gpu[003-005,9],login` -> `gpu003`."""
    match = re.match(r"([^\[,]+)(?:\[([^\]]+)\](.*?))?(?:,|$)", nodelist)
    if match is None:
        return nodelist
    prefix, ranges, suffix = match.groups()
    return prefix + re.split(r"[,-]", ranges)[0] + suffix if ranges else prefix
