"""Joining the processes of torchrun and Slurm."""

from __future__ import annotations

import pytest

from loongforge.config.errors import UserError
from loongforge.training.world import World, first_host, join_given_world

_TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
_SLURM = {
    "SLURM_PROCID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "gpu[003-005]",
    "SLURM_JOB_ID": "77",
}


def test_no_world() -> None:
    assert join_given_world({}) is None
    assert join_given_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None


def test_torchrun() -> None:
    assert join_given_world(dict(_TORCHRUN)) == World(3, 4)


def test_slurm_is_translated_for_torch() -> None:
    environ = dict(_SLURM)
    assert join_given_world(environ) == World(2, 4)
    assert environ["RANK"] == "2"
    assert environ["LOCAL_RANK"] == "1"
    assert environ["MASTER_ADDR"] == "gpu003"
    other = {**_SLURM, "SLURM_PROCID": "0"}
    join_given_world(other)
    assert other["MASTER_PORT"] == environ["MASTER_PORT"]


def test_given_master_stays() -> None:
    environ = {**_SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4242"}
    join_given_world(environ)
    assert (environ["MASTER_ADDR"], environ["MASTER_PORT"]) == ("10.0.0.1", "4242")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({**_TORCHRUN, "RANK": "4"}, "RANK=4 does not fit WORLD_SIZE=4"),
    ],
)
def test_contradictions(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        join_given_world(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[003-005,9],x", "gpu003"), ("a-b[7]", "a-b7"), ("r[1-2].site", "r1.site")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
