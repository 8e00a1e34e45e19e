"""What a component needs to know of its place in the run in order to build this rank's shard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """Place of one component on this rank."""

    groups: ProcessGroupCollection
    """The component's own process groups."""
    dtype: torch.dtype
    """Of parameters and activations."""
    pp: int = 1
    """Pipeline stages of the component."""
    sequence_parallel: bool = False
    """Shard activations along the sequence between tensor-parallel regions."""
    recompute: bool = False
    """Recompute every layer's activations in the backward pass."""

    @property
    def tp(self) -> int:
        """Tensor-parallel size."""
        return self.groups.tp.size()

    @property
    def first_stage(self) -> bool:
        """Whether this rank holds the first pipeline stage."""
        return self.groups.pp.rank() == 0

    @property
    def last_stage(self) -> bool:
        """Whether this rank holds the last pipeline stage."""
        return self.groups.pp.rank() == self.pp - 1
