"""One table of a vendor's variables: the job that is written and the process that runs refuse and ask for the same."""

from __future__ import annotations

import re

import pytest
from loongforge_backends.kunlun.environment import advice, refusals

from loongforge.cluster.environment import exports
from loongforge.config.environment import Variable, variables
from loongforge.config.errors import UserError
from loongforge.config.launch_schema import ClusterConfig
from tests.repo.files import REPO

TABLE = variables("kunlun")
REFUSED = [variable for variable in TABLE if variable.tier == "refuse"]
PAGE = (REPO / "docs" / "kunlun.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize("value", ["1", "0", "", "true", "TRAIN"])
@pytest.mark.parametrize("variable", REFUSED, ids=lambda variable: variable.name)
def test_job_and_backend_refuse_the_same(variable: Variable, value: str, world: int) -> None:
    for extra in ({}, {variable.allow: "1"} if variable.allow else {}):
        environ = {variable.name: value, **extra}
        by_backend = [problem.text for problem in refusals({**environ, "WORLD_SIZE": str(world)})]
        cluster = ClusterConfig(profile="kunlun", nodes=1, processes_per_node=world)
        try:
            exports(cluster, environ)
            by_job = ""
        except UserError as error:
            by_job = str(error)
        assert bool(by_backend) == bool(by_job)
        for text in by_backend:
            assert variable.why in text and variable.why in by_job and variable.fix in by_job


@pytest.mark.parametrize(
    ("name", "value", "world", "refused"),
    [
        ("XPU_RUN_MODE", "", 1, True),
        ("XTORCHRUN_CLEAN", "0", 1, False),
        ("XTORCHRUN_CLEAN", "yes", 1, True),
        ("XPU_EVENT_KL3_ENABLE", "1", 1, False),
        ("XPU_EVENT_KL3_ENABLE", "true", 2, True),
        ("XMLIR_DISABLE_CUDA_ALLOCATOR", "true", 8, False),
        ("XMLIR_DISABLE_CUDA_ALLOCATOR", "1", 1, True),
        ("DISABLE_XPYTORCH", "1", 1, True),
        ("DISABLE_XPYTORCH", "0", 1, False),
    ],
)
def test_conditions(name: str, value: str, world: int, refused: bool) -> None:
    assert bool(list(refusals({name: value, "WORLD_SIZE": str(world)}))) == refused


def test_what_a_job_exports_leaves_the_backend_nothing_to_advise() -> None:
    environ = exports(ClusterConfig(profile="kunlun"), {})
    assert not list(advice({**environ, "LD_LIBRARY_PATH": "/opt/xcudart/lib"}))
    assert not list(refusals({**environ, "WORLD_SIZE": "8"}))


@pytest.mark.parametrize("variable", TABLE, ids=lambda variable: variable.name)
def test_a_variable_has_its_sources(variable: Variable) -> None:
    assert variable.why and variable.source
    assert (variable.value is not None) == (variable.tier == "set")
    if variable.tier in ("refuse", "avoid"):
        (row,) = re.findall(rf"^\| `{variable.name}\b.*$", PAGE, re.MULTILINE)
        assert row.split("|")[-2].strip().startswith(variable.keys)
