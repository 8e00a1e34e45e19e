"""Traces of chosen steps: a Chrome trace for each rank, and tables of what took longest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loongforge.config.profile_schema import ProfileConfig
from loongforge.kernels.backend import Backend
from loongforge.kernels.phases import PHASES, PhaseClock

if TYPE_CHECKING:
    from torch.profiler import profile

_ROWS = 30


class Tracer:
    """Traces the steps that the recipe names.

    Args:
        config: `profile` of the recipe.
        backend: What can be recorded.
        phases: Become ranges of the trace.
        run_dir: Files go to its `profiles/`.
        rank: This one.
    """

    def __init__(self, config: ProfileConfig, backend: Backend, phases: PhaseClock, run_dir: Path, rank: int) -> None:
        self.config, self.backend, self.phases, self.rank = config, backend, phases, rank
        self.folder = run_dir / "profiles"
        mine = config.ranks is None or rank in config.ranks
        self.steps = frozenset(config.steps) if mine else frozenset()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Traces what is done inside, if it is a step to be traced.

        Args:
            number: Of the step, from 1.
        """
        if number not in self.steps:
            yield
            return
        from torch.profiler import profile, record_function

        activities = self.backend.tools().trace_activities()
        wanted: dict[str, Any] = {"record_shapes": self.config.shapes, "profile_memory": self.config.memory}
        with profile(activities=activities, **wanted) as found:
            self.phases.tracing = True
            try:
                with record_function(f"step {number}"):
                    yield
                self.backend.synchronize()
            finally:
                self.phases.tracing = False
        self._write(found, number)

    def _write(self, found: profile, number: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"step_{number:08d}.rank_{self.rank}"
        found.export_chrome_trace(str(self.folder / f"{name}.json"))
        (self.folder / f"{name}.txt").write_text(self._tables(found, number), encoding="utf-8")

    def _tables(self, found: profile, number: int) -> str:
        """Phases, then the operations that took most time of their own."""
        by_shape = self.config.shapes
        averages = found.key_averages()
        ranges = {event.key: event for event in averages if event.is_user_annotation or event.key in PHASES}
        lines = [f"step {number} of rank {self.rank}; tracing costs time, steps without it are faster", ""]
        lines.append(f"{'phase':<14}{'calls':>6}{'ms on the host':>18}")
        for phase in PHASES:
            if phase in ranges:
                lines.append(f"{phase:<14}{ranges[phase].count:>6}{ranges[phase].cpu_time_total / 1e3:>18.3f}")
        device = any(event.self_device_time_total for event in averages)
        grouped = found.key_averages(group_by_input_shape=True) if by_shape else averages
        order = "self_device_time_total" if device else "self_cpu_time_total"
        return "\n".join([*lines, "", grouped.table(sort_by=order, row_limit=_ROWS, max_name_column_width=60), ""])
