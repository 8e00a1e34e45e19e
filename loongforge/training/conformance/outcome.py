"""What stages find. No torch here."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "skip", "timeout", "crash"]


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    ok: bool
    figure: float | None = None
    """What was measured, where that is a number."""
    limit: float | None = None
    """What it may be at most."""
    note: str = ""

    @classmethod
    def below(cls, name: str, figure: float, limit: float, note: str = "") -> Check:
        """A figure that may not exceed a limit; what is not a number does."""
        return cls(name, figure <= limit, figure if math.isfinite(figure) else None, limit, note)


@dataclass(frozen=True)
class StageResult:
    """Of one stage, over all its processes."""

    stage: str
    outcome: Outcome
    seconds: float
    checks: list[Check] = field(default_factory=list)
    message: str = ""
    """Why it was left out, or the end of what a failed process wrote."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def overall(results: list[StageResult]) -> Literal["pass", "fail", "incomplete"]:
    """A stage left out is no pass."""
    found = {result.outcome for result in results}
    if found & {"fail", "timeout", "crash"}:
        return "fail"
    return "pass" if found == {"pass"} else "incomplete"
