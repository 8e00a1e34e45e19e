"""Environment of `torch_xmlir`: what is refused and what is advised; the facts are the table of the vendor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loongforge.config.environment import Variable, variables
from loongforge.kernels.backend import Problem

PROFILE = "kunlun"


def _text(variable: Variable, environ: Mapping[str, str]) -> str:
    return f"{variable.name}={environ[variable.name]} {variable.why} [{variable.keys}]"


def refusals(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Settings under which nothing is started."""
    world = int(environ.get("WORLD_SIZE", "1"))
    for variable in variables(PROFILE):
        if variable.refused(environ, world):
            yield Problem(_text(variable, environ), variable.fix, fatal=True)


def advice(environ: Mapping[str, str]) -> Iterator[Problem]:
    """Settings that are better otherwise."""
    for variable in variables(PROFILE):
        if variable.tier == "avoid" and variable.name in environ:
            yield Problem(_text(variable, environ), f"unset {variable.name}")
    wrong = [v for v in variables(PROFILE) if v.checked and environ.get(v.name, "").lower() != str(v.value).lower()]
    if wrong:
        text = f"operations may fall back to the host without a word [{wrong[0].keys}]"
        yield Problem(text, "export " + " ".join(f"{v.name}={v.value}" for v in wrong))
    if "xcudart" not in environ.get("LD_LIBRARY_PATH", ""):
        text = "LD_LIBRARY_PATH names no xcudart: processes that torch starts may not find the driver [R, L]"
        yield Problem(text, "put the xcudart/lib folder of XPyTorch first on it")
