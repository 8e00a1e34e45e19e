"""What a job exports on every node: the vendor's variables and the user's own. No torch here."""

from __future__ import annotations

import os
from collections.abc import Mapping

from loongforge.config.environment import Variable, variables
from loongforge.config.errors import UserError
from loongforge.config.launch_schema import ClusterConfig


def exports(cluster: ClusterConfig, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What every node exports: the profile's, then the user's own `cluster.env`.

    Raises:
        UserError: a variable that the profile refuses is set, here or in `cluster.env`.
    """
    wanted = variables(cluster.profile) if cluster.profile is not None else ()
    found = {variable.name: str(variable.value) for variable in wanted if variable.tier == "set"}
    found |= cluster.env
    seen, world = {**environ, **found}, cluster.nodes * cluster.processes_per_node
    refused = [variable for variable in wanted if variable.refused(seen, world)]
    if refused:
        lines = "".join(f"\n  - {v.name}={seen[v.name]}: {v.why} ({v.source}); {v.fix}" for v in refused)
        raise UserError(f"cluster.profile={cluster.profile} refuses these variables:{lines}")
    return found


def unset_site_variables(cluster: ClusterConfig, environ: Mapping[str, str] = os.environ) -> list[Variable]:
    """What depends on the cluster and nobody has given."""
    wanted = variables(cluster.profile) if cluster.profile is not None else ()
    return [v for v in wanted if v.tier == "site" and v.name not in cluster.env and v.name not in environ]
