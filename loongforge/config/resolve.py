"""From an OmegaConf config to plain values; what cannot be resolved is kept for the validator to report."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

MISSING = "???"
"""How YAML says that a value must still be given."""


class Unresolved(str):
    """An interpolation that leads nowhere, as written; `reason` says why."""

    reason: str


def resolve(config: DictConfig) -> dict[str, Any]:
    """The tree of plain values; `???` stays, a broken interpolation becomes `Unresolved`."""
    return {str(key): _value(config, key) for key in config}


def _value(parent: DictConfig | ListConfig, key: Any) -> Any:
    if OmegaConf.is_missing(parent, key):
        return MISSING
    try:
        value = parent[key]
    except OmegaConfBaseException as error:
        written = Unresolved(OmegaConf.to_container(parent, resolve=False)[key])  # type: ignore[index, call-overload]
        written.reason = str(error).splitlines()[0]
        return written
    if isinstance(value, DictConfig):
        return resolve(value)
    if isinstance(value, ListConfig):
        return [_value(value, i) for i in range(len(value))]
    return value
