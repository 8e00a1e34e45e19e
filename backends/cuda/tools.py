"""Events, ranges, traces and memory snapshots of CUDA. Written from torch's documentation, not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loongforge.kernels.tools import DeviceTools

_HISTORY = 200_000
"""Allocations that are remembered; some hundred bytes each on the host."""


class EventMark:
    """An event on the current stream."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        import torch

        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def reached(self) -> bool:
        """Asks the event, which waits for nothing."""
        return bool(self.event.query())

    def seconds_since(self, earlier: EventMark) -> float:
        """By the device's clock, to half a microsecond."""
        return float(earlier.event.elapsed_time(self.event)) / 1e3


class CudaTools(DeviceTools):
    """What the CUDA backend has."""

    def mark(self) -> EventMark:
        """An event."""
        return EventMark()

    @contextmanager
    def named_range(self, name: str) -> Iterator[None]:
        """An NVTX range, for Nsight; torch without NVTX does without."""
        import torch

        try:
            torch.cuda.nvtx.range_push(name)
        except RuntimeError:  # torch is built without NVTX
            yield
            return
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()

    def trace_activities(self) -> Sequence[Any]:
        """The host's, and kernels through CUPTI where this torch has it."""
        from torch.profiler import ProfilerActivity, supported_activities

        return [one for one in (ProfilerActivity.CPU, ProfilerActivity.CUDA) if one in supported_activities()]

    def record_memory(self) -> bool:
        """torch's history of allocations; its functions are not yet public."""
        import torch

        start = getattr(torch.cuda.memory, "_record_memory_history", None)
        if start is None:
            return False
        start(max_entries=_HISTORY)
        return True

    def snapshot_memory(self, path: Path) -> bool:
        """For https://pytorch.org/memory_viz."""
        import torch

        dump = getattr(torch.cuda.memory, "_dump_snapshot", None)
        if dump is None:
            return False
        dump(str(path))
        return True
