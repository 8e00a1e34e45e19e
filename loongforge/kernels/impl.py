"""One implementation of one op: what it is called, where it runs, what it refuses, and on whose word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Evidence = Literal["reference", "contract", "measured"]
"""`reference`: the plain formula; `contract`: written to a cited description of a kernel; `measured`: verified on this
machine by `loongforge backends verify`."""


def _nothing_missing() -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Impl:
    """An implementation of an op."""

    op: str
    """One of `ops.OPS`."""
    name: str
    """What a recipe writes: `kernels.OP: NAME`."""
    load: Callable[[], Callable[..., Any]]
    """Imports what it needs and returns the function, with the arguments of `ops`."""
    priority: int
    """Of those that are there, the highest is taken."""
    source: str
    """Where its contract is written down: a paper, a documentation, a key of `docs/backends.md`."""
    evidence: Evidence = "contract"
    missing: Callable[[], str | None] = _nothing_missing
    """Why it cannot be used on this machine, or None. Does not import heavy packages."""
    refuses: Callable[..., str | None] | None = None
    """Why it does not take these arguments, or None; None: it takes all that `ops` allows."""
    differentiable: bool = True
    """Otherwise it is for inference, and never chosen for training."""
