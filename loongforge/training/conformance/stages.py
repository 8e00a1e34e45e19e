"""The stages, in order: what each needs and how long it may take. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

_HERE = "loongforge.training.conformance"


@dataclass(frozen=True)
class Stage:
    """One part of the suite."""

    name: str
    function: str
    """`module:function`, called with a `Context` in every process; returns checks."""
    seconds: float
    """Time limit, start of the processes included."""
    about: str
    ranks: bool = False
    """In `--nproc` processes; else in one."""
    on_cpu: bool = False
    """Runs with the CPU backend and the plain formulas, to compare with."""
    after: tuple[str, ...] = ()
    """Stages whose files it reads."""


STAGES = (
    Stage("device", f"{_HERE}.device:device", 300, "placement, exact and rounded arithmetic, memory, timing"),
    Stage("random", f"{_HERE}.device:random", 300, "random numbers replay from a seed and from a state"),
    Stage("ops", f"{_HERE}.kernels:kernels", 900, "every implementation of every op, forward and backward"),
    Stage("collectives", f"{_HERE}.collectives:collectives", 300, "their values per dtype", ranks=True),
    Stage("baseline", f"{_HERE}.curve:baseline", 600, "50 steps of a tiny model on CPU, to compare with", on_cpu=True),
    Stage("curve", f"{_HERE}.curve:curve", 600, "the same 50 steps on the backend", after=("baseline",)),
    Stage("checkpoint", f"{_HERE}.curve:checkpoint", 600, "saved here and on CPU, goes on here", after=("baseline",)),
    Stage(
        "checkpoint_on_cpu",
        f"{_HERE}.curve:checkpoint_on_cpu",
        600,
        "saved here, goes on on CPU",
        on_cpu=True,
        after=("baseline", "checkpoint"),
    ),
)
