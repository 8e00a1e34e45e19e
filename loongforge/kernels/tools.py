"""What measuring and finding faults need of a device. The defaults are the host's; a backend overrides what its devices
do better."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

_HOST_SAYS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
"""Ends of torch's messages where the host has no memory left, which have no class of their own."""


class Mark(Protocol):
    """A moment in the work of a device."""

    def reached(self) -> bool:
        """Whether the device has come there; never waits."""
        ...

    def seconds_since(self, earlier: Any) -> float:
        """Seconds from an earlier mark of the same kind; both have been reached."""
        ...


class HostMark:
    """Now, by the host's clock."""

    __slots__ = ("time",)

    def __init__(self) -> None:
        self.time = time.perf_counter()

    def reached(self) -> bool:
        """It is past."""
        return True

    def seconds_since(self, earlier: HostMark) -> float:
        """Seconds between them."""
        return self.time - earlier.time


class DeviceTools:
    """Marks, ranges, traces and memory of a device."""

    def mark(self) -> Mark:
        """The moment at which the device is done with what was launched so far, set without waiting for it."""
        return HostMark()

    def named_range(self, name: str) -> AbstractContextManager[Any]:
        """What is launched inside has this name in the vendor's own profiler."""
        return nullcontext()

    def trace_activities(self) -> Sequence[Any]:
        """`torch.profiler.ProfilerActivity`s that can be recorded."""
        from torch.profiler import ProfilerActivity

        return [ProfilerActivity.CPU]

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that the device, or the host, has no memory left."""
        import torch

        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return True
        return isinstance(error, RuntimeError) and any(text in str(error) for text in _HOST_SAYS)

    def record_memory(self) -> bool:
        """Starts to keep the history of allocations; False where that cannot be."""
        return False

    def snapshot_memory(self, path: Path) -> bool:
        """Writes what the allocator holds, with the history if it is kept; False where that cannot be."""
        return False
