"""Settings that make a step smaller in memory."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

from loongforge.config.schema import Config


@dataclass(frozen=True)
class Setting:
    """A key of a recipe and the value that saves memory."""

    section: str
    key: str
    value: bool | int | str

    def __str__(self) -> str:
        """As an override."""
        return f"{self.section}.{self.key}={str(self.value).lower()}"

    def applied(self, config: Config) -> Config:
        """The recipe with it; the same object where it has it already."""
        section = getattr(config, self.section)
        if getattr(section, self.key) == self.value:
            return config
        found = copy(config)
        setattr(found, self.section, replace(section, **{self.key: self.value}))
        return found


LEANER = (
    Setting("optimizer", "distributed", True),
    Setting("trainer", "micro_batch_size", 1),
    Setting("trainer", "recompute", "full"),
)
"""In the order in which they are tried."""
