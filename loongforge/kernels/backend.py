"""What a backend (one vendor's devices) offers, and how one is chosen.

Backends are found through the entry point group `loongforge.backends`; nothing imports one by name.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol

from loongforge.config.errors import UserError, did_you_mean

ENTRY_POINT_GROUP = "loongforge.backends"


class Backend(Protocol):
    """One vendor's devices, as the rest of loongforge sees them."""

    name: str
    """Vendor id, e.g. `cpu`; never a torch device type."""
    torch_device_type: str
    """What `torch.device` calls it."""
    dist_backend: str
    """Name of the collectives for `torch.distributed.init_process_group`."""

    def available(self) -> bool:
        """Whether this machine has such devices."""
        ...

    def priority(self) -> int:
        """`auto` takes the available backend with the highest."""
        ...

    def device_count(self) -> int:
        """Processes that `launcher.nproc: null` starts."""
        ...

    def activate(self) -> None:
        """Makes megatron-core run on these devices; call before its first import. Idempotent."""
        ...

    def set_threads(self, threads: int) -> None:
        """Limits the CPU threads of this process."""
        ...

    def peak_memory_bytes(self) -> int:
        """Most memory that this process has held on its device so far."""
        ...

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s that the device reaches at most in `dtype` (`fp32`, `bf16`); None where not known."""
        ...


def installed() -> dict[str, Backend]:
    """Every installed backend by name."""
    found = (point.load()() for point in entry_points(group=ENTRY_POINT_GROUP))
    return {backend.name: backend for backend in found}


def select(name: str) -> Backend:
    """The backend of that name, or for `auto` the available one with the highest priority.

    Raises:
        UserError: it is not installed, or has no device here.
    """
    backends = installed()
    if name == "auto":
        return max((b for b in backends.values() if b.available()), key=lambda b: b.priority())
    if name not in backends:
        known = ", ".join(["auto", *sorted(backends)])
        raise UserError(f"backend={name!r} is not installed. Allowed: {known}.{did_you_mean(name, backends)}")
    if not backends[name].available():
        raise UserError(f"backend={name!r} has no device on this machine. Use backend=auto.")
    return backends[name]
