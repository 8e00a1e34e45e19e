"""What a backend (one vendor's devices) offers, and how one is chosen.

Backends are found through the entry point group `loongforge.backends`; nothing imports one by name, and nothing but a
backend knows what torch calls its devices or collectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, Protocol

from loongforge.config.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

    from loongforge.kernels.impl import Impl
    from loongforge.kernels.tools import DeviceTools

ENTRY_POINT_GROUP = "loongforge.backends"

CAPABILITIES = {
    "bf16": "bfloat16 arithmetic",
    "fp16": "float16 arithmetic",
    "fp8": "8-bit floating-point arithmetic",
    "fp64": "float64 tensors on the device",
    "compile": "torch.compile generates code",
    "triton": "Triton kernels",
    "graph": "capture and replay of a step's launches",
    "event_timing": "times between events on the device",
    "memory_stats": "the allocator's figures, its peak included",
    "pinned_async": "copies from pinned memory beside the computation",
    "reduce_avg": "averages in collectives",
    "reduce_premul_sum": "scaled sums in collectives",
    "comm_hook": "communication hooks of data-parallel wrappers",
    "stream_priority": "streams of high priority",
    "sdpa_vision": "scaled_dot_product_attention in vision towers",
    "expandable_segments": "an allocator that grows its segments",
}
"""What a backend is asked for, by name."""


@dataclass(frozen=True)
class Support:
    """Whether a backend has a capability, and who says so."""

    value: Literal["yes", "no", "unknown"]
    source: str
    """`documented: WHERE` or `probed: HOW`."""


@dataclass(frozen=True)
class Problem:
    """Something on this machine that should be otherwise."""

    text: str
    fix: str
    fatal: bool = False
    """Nothing runs until it is mended."""


@dataclass(frozen=True)
class Detection:
    """Whether a backend's devices are here, and what that rests on."""

    state: Literal["ok", "emulated", "absent", "no_device", "broken"]
    """`absent`: not such a machine; `no_device`: its software without a device; `broken`: it is there and cannot be
    used; `emulated`: a stand-in for tests."""
    evidence: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def usable(self) -> bool:
        """Training can start."""
        return self.state in ("ok", "emulated") and not any(problem.fatal for problem in self.problems)

    @property
    def silent(self) -> bool:
        """Nothing here speaks for this backend, so `auto` may pass it over without a word."""
        return self.state in ("absent", "no_device")

    def why_not(self) -> str:
        """In one line."""
        fatal = [f"{p.text} ({p.fix})" for p in self.problems if p.fatal]
        return f"{self.state}: " + ("; ".join([*fatal, *self.evidence]) or "nothing was found")


class Elapsed(Protocol):
    """What a timer gives."""

    seconds: float
    """Of the work inside the context, when it has been left."""


class Backend(Protocol):
    """One vendor's devices, as the rest of loongforge sees them."""

    name: str
    """Vendor id, e.g. `cpu`: what recipes and reports call it. Never a torch device type."""
    title: str
    """For people."""
    torch_device_type: str
    """What `torch.device` calls it; two vendors may share one."""
    dist_backend: str
    """Collectives for `torch.distributed.init_process_group`; tensors on the host are served as well."""
    probe_order: int
    """`auto` asks backends in this order; vendors that look like another one come before it."""
    shared_device: bool
    """Several processes can work together on one device."""
    hidden_by: Mapping[str, str]
    """Environment in which a new process sees none of its devices."""

    # Finding it: without torch where nothing speaks for it.
    def detect(self) -> Detection:
        """Looks at this machine; never raises."""
        ...

    def device_count(self) -> int:
        """Processes that `launcher.nproc: null` starts."""
        ...

    def versions(self) -> Mapping[str, str]:
        """Of everything that results depend on."""
        ...

    def capability(self, name: str) -> Support:
        """One of `CAPABILITIES`."""
        ...

    # Starting.
    def activate(self) -> None:
        """Makes megatron-core run on these devices; call before its first import. Idempotent."""
        ...

    def set_threads(self, threads: int) -> None:
        """Limits the CPU threads of this process."""
        ...

    def set_device(self, local_rank: int) -> None:
        """Gives this process a device of the machine; its tensors are made there from now on."""
        ...

    def device(self) -> torch.device:
        """This process's device."""
        ...

    # Running.
    def synchronize(self) -> None:
        """Waits for everything that was launched."""
        ...

    def timer(self) -> AbstractContextManager[Elapsed]:
        """Times the device work that is launched inside; waits for it."""
        ...

    def seed(self, seed: int) -> None:
        """Seeds the device's random numbers."""
        ...

    def rng_state(self) -> torch.Tensor:
        """uint8, on the host: the state of the device's random numbers."""
        ...

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Puts one back."""
        ...

    # Figures.
    def memory(self) -> Mapping[str, int]:
        """Bytes: some of `total`, `free`, `allocated`, `reserved`. What is not known is left out, never 0."""
        ...

    def peak_memory_bytes(self) -> int:
        """Most memory that this process has held on its device so far."""
        ...

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s that the device reaches at most in `dtype` (`fp32`, `bf16`); None where not known."""
        ...

    def tools(self) -> DeviceTools:
        """Marks in time, traces, what is known of memory that has run out; `DeviceTools()` are the host's."""
        ...

    # Kernels: see `registry`.
    def kernels(self) -> Sequence[Impl]:
        """Implementations of its own."""
        ...

    def refused_kernels(self) -> Mapping[tuple[str, str], str]:
        """(op, name) of implementations that must not run on it, and why."""
        ...


def installed() -> dict[str, Backend]:
    """Every installed backend by name, in the order in which `auto` asks them.

    Raises:
        UserError: one does not load.
    """
    found: list[Backend] = []
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            found.append(point.load()())
        except Exception as error:
            owner = f" of {point.dist.name}" if point.dist is not None else ""
            raise UserError(f"backend {point.name!r}{owner} does not load: {type(error).__name__}: {error}") from error
    return {backend.name: backend for backend in sorted(found, key=lambda backend: backend.probe_order)}


def select(name: str) -> Backend:
    """The backend of that name, or for `auto` the first whose devices are here.

    A vendor's software that is here but cannot be used ends `auto` as well: the next backend might be the same devices,
    half set up.

    Raises:
        UserError: it is not installed, or cannot be used here.
    """
    backends = installed()
    if name == "auto":
        for backend in backends.values():
            found = backend.detect()
            if found.usable:
                return backend
            if not found.silent:
                raise UserError(
                    f"backend=auto found {backend.title}, which cannot be used: {found.why_not()}. "
                    "Mend that, or name another backend (loongforge backends)"
                )
        raise UserError("backend=auto found no devices; reinstall loongforge, whose CPU backend always has one")
    if name not in backends:
        known = ", ".join(["auto", *sorted(backends)])
        raise UserError(f"backend={name!r} is not installed. Allowed: {known}.{did_you_mean(name, backends)}")
    found = backends[name].detect()
    if not found.usable:
        raise UserError(f"backend={name!r} cannot be used on this machine: {found.why_not()}. Use backend=auto")
    return backends[name]


_current: Backend | None = None


def start(backend: Backend, local_rank: int = 0) -> None:
    """Activates a backend and takes a device; `current` is this one from now on."""
    global _current
    backend.activate()
    backend.set_device(local_rank)
    _current = backend


def current() -> Backend:
    """The backend that this process has started; where it has not, what `auto` finds."""
    global _current
    if _current is None:
        _current = select("auto")
    return _current


def widest_dtype() -> torch.dtype:
    """float64, or float32 where the current device has none."""
    import torch

    return torch.float32 if current().capability("fp64").value == "no" else torch.float64
