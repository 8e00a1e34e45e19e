"""Environment variables of a vendor's nodes, as data with sources: `environments/NAME.yaml`. No torch here.

`loongforge launch` writes jobs from it, and the vendor's backend judges the processes that run by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from loongforge.config.errors import UserError, did_you_mean

_FOLDER = Path(__file__).parent / "environments"
_OFF = ("", "0", "false")


def is_on(value: str) -> bool:
    """Whether a switch of that value is on."""
    return value.lower() not in _OFF


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable and why it is set, refused or asked for."""

    name: str
    tier: Literal["set", "site", "refuse", "avoid"]
    """`set`: always exported; `site`: depends on the cluster, the user gives it; `refuse`: nothing is started with it;
    `avoid`: better not set."""
    why: str
    source: str
    keys: str = ""
    """Of the sources, in the vendor's page of the documentation."""
    value: str | None = None
    """What is exported."""
    when: str = "any"
    """Which values are refused: `any`, `on` (but empty, 0 and false), or one value."""
    several: bool = False
    """Refused with several processes only."""
    allow: str | None = None
    """A variable that permits it all the same, at the user's risk."""
    checked: bool = False
    """The backend advises to set it where it has another value."""

    def refused(self, environ: Mapping[str, str], world: int) -> bool:
        """Whether nothing may be started with this environment, in so many processes."""
        if self.tier != "refuse" or self.name not in environ or (self.several and world == 1):
            return False
        value = environ[self.name]
        bad = {"any": True, "on": is_on(value)}.get(self.when, value == self.when)
        return bad and not (self.allow is not None and is_on(environ.get(self.allow, "")))

    @property
    def fix(self) -> str:
        """What to do about a refusal."""
        return f"unset {self.name}" + (f" (or {self.allow}=1, at your own risk)" if self.allow else "")


@cache
def variables(profile: str) -> tuple[Variable, ...]:
    """Of a profile in `environments/`.

    Raises:
        UserError: there is none of that name.
    """
    known = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    if profile not in known:
        raise UserError(
            f"cluster.profile={profile} is not known.{did_you_mean(profile, known)} Allowed: {', '.join(known)}, null"
        )
    entries = yaml.safe_load((_FOLDER / f"{profile}.yaml").read_text(encoding="utf-8"))
    return tuple(Variable(name=name, **entry) for name, entry in entries.items())
