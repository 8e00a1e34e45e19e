"""What several backends share."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loongforge.kernels.impl import Impl


class HostTimer:
    """Times by the host's clock, between two moments at which the device is idle."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self.seconds = 0.0

    def __enter__(self) -> HostTimer:
        self._synchronize()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._synchronize()
        self.seconds = time.perf_counter() - self._began


def package_versions(*names: str) -> dict[str, str]:
    """Python's version and those of the distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def os_memory() -> dict[str, int]:
    """Bytes of the machine, and those that this process holds."""
    import psutil

    machine = psutil.virtual_memory()
    return {"total": machine.total, "free": machine.available, "allocated": psutil.Process().memory_info().rss}


def fused_adamw() -> Impl:
    """torch's own fused kernel, which CPU and CUDA have."""
    from loongforge.kernels.impl import Impl

    def load() -> Callable[..., Any]:
        from loongforge.kernels import adam

        return adam.fused

    return Impl(op="adamw", name="fused", load=load, priority=20, source="torch.optim.AdamW(fused=True)")
