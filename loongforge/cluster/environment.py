"""Environment variables of a vendor's nodes, as data with sources. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from loongforge.config.errors import UserError, did_you_mean
from loongforge.config.launch_schema import ClusterConfig

_FOLDER = Path(__file__).parent / "environments"


@dataclass(frozen=True)
class Variable:
    """One variable and why it is set, refused or asked for."""

    name: str
    tier: str
    """`set`: always exported; `site`: depends on the cluster, the user gives it; `refuse`: must not be set."""
    why: str
    source: str
    value: str | None = None
    """What is exported; of a refused one: the only value that is refused (null: any)."""


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


def exports(cluster: ClusterConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every node exports: the profile's, then the user's own `cluster.env`.

    Raises:
        UserError: a variable that the profile refuses is set, here or in `cluster.env`.
    """
    wanted = variables(cluster.profile) if cluster.profile is not None else ()
    found = {variable.name: str(variable.value) for variable in wanted if variable.tier == "set"}
    found |= cluster.env
    seen = {**environ, **found}
    refused = [v for v in wanted if v.tier == "refuse" and v.name in seen and v.value in (None, seen[v.name])]
    if refused:
        lines = "".join(f"\n  - {v.name}={seen[v.name]}: {v.why} ({v.source})" for v in refused)
        raise UserError(f"cluster.profile={cluster.profile} refuses these variables; unset them:{lines}")
    return found


def unset_site_variables(cluster: ClusterConfig, environ: Mapping[str, str] = os.environ) -> list[Variable]:
    """What depends on the cluster and nobody has given."""
    wanted = variables(cluster.profile) if cluster.profile is not None else ()
    return [v for v in wanted if v.tier == "site" and v.name not in cluster.env and v.name not in environ]
