"""Traces of steps, and what of them cannot be meant. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class ProfileConfig:
    """Traces of chosen steps by torch's profiler, in `profiles/` of the run, and what is kept of memory."""

    steps: list[int] = field(default_factory=list)
    """Numbers of the steps that are traced, from 1, as in `metrics.jsonl`: `[10, 12]` traces these two."""
    ranks: list[int] | None = field(default_factory=lambda: [0])
    """Ranks that trace; null: all."""
    shapes: bool = False
    """Traces say the shapes of each operation's inputs."""
    memory: bool = False
    """Traces say what each operation allocates. On devices that can, the history of allocations is kept from the first
    step on, for the snapshot that is written when memory runs out."""

    def problems(self, steps: int, world: int) -> list[str]:
        """Steps and ranks that will not be.

        Args:
            steps: Of the whole run.
            world: Ranks.
        """
        found = []
        if late := [step for step in self.steps if step > steps]:
            allowed = f"1 .. {steps} (trainer.steps)"
            found.append(f"profile.steps={list(self.steps)}: there is no step {late[0]}; allowed: {allowed}")
        if beyond := [rank for rank in self.ranks or [] if rank >= world]:
            allowed = f"0 .. {world - 1}, or null for all"
            found.append(f"profile.ranks={list(self.ranks or [])}: there is no rank {beyond[0]}; allowed: {allowed}")
        return found
