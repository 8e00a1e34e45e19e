"""The CPU backend: gloo collectives, megatron-core without CUDA."""

from __future__ import annotations

import platform
import resource
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loongforge_backends.common import HostTimer, os_memory, package_versions

from loongforge.kernels.backend import Detection, Support
from loongforge.kernels.tools import DeviceTools

if TYPE_CHECKING:
    import torch

    from loongforge.kernels.impl import Impl

_CAPABILITIES = {
    "bf16": Support("yes", "documented: oneDNN, emulated where the processor has none"),
    "fp16": Support("yes", "documented: oneDNN, emulated where the processor has none"),
    "fp8": Support("no", "documented: no arithmetic in torch on CPU"),
    "fp64": Support("yes", "documented: torch"),
    "triton": Support("no", "documented: Triton generates GPU code"),
    "graph": Support("no", "documented: nothing is launched"),
    "event_timing": Support("no", "documented: the host's clock serves"),
    "memory_stats": Support("no", "documented: torch keeps none on CPU"),
    "pinned_async": Support("no", "documented: nothing is copied"),
    "reduce_avg": Support("no", "documented: gloo"),
    "reduce_premul_sum": Support("no", "documented: gloo"),
    "comm_hook": Support("yes", "documented: torch"),
    "stream_priority": Support("no", "documented: no streams"),
    "sdpa_vision": Support("yes", "documented: torch, oneDNN"),
    "expandable_segments": Support("no", "documented: torch's CUDA allocator"),
}


class CpuBackend:
    """Runs everything on the host."""

    name = "cpu"
    title = "CPU"
    torch_device_type = "cpu"
    dist_backend = "gloo"
    probe_order = 100
    shared_device = True
    hidden_by: Mapping[str, str] = {}

    def detect(self) -> Detection:
        """Always there."""
        return Detection("ok", (f"processor {platform.machine()}",))

    def device_count(self) -> int:
        """One process by default; more are asked for with `launcher.nproc`."""
        return 1

    def versions(self) -> Mapping[str, str]:
        """Of Python, torch and megatron-core."""
        return package_versions("torch", "megatron-core")

    def capability(self, name: str) -> Support:
        """See the table above; code is generated through a C++ compiler."""
        if name == "compile":
            tool = shutil.which("c++") or shutil.which("g++")
            return Support("yes" if tool else "no", f"probed: {tool or 'no c++'} on PATH")
        return _CAPABILITIES[name]

    def activate(self) -> None:
        """Lets the unmodified megatron-core wheel run on a CPU-only torch."""
        from loongforge_backends.cpu import compat

        if compat.install():
            from loongforge.kernels import adam

            adam.install()

    def set_threads(self, threads: int) -> None:
        """OpenMP threads of this process."""
        import torch

        torch.set_num_threads(threads)

    def set_device(self, local_rank: int) -> None:
        """All processes share the host."""

    def device(self) -> torch.device:
        """The host."""
        import torch

        return torch.device("cpu")

    def synchronize(self) -> None:
        """Nothing is left running."""

    def timer(self) -> HostTimer:
        """The host's clock."""
        return HostTimer(self.synchronize)

    def seed(self, seed: int) -> None:
        """torch's generator."""
        import torch

        torch.manual_seed(seed)

    def rng_state(self) -> torch.Tensor:
        """Of torch's generator."""
        import torch

        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Of torch's generator."""
        import torch

        torch.set_rng_state(state)

    def memory(self) -> Mapping[str, int]:
        """Of the machine, and of this process."""
        return os_memory()

    def peak_memory_bytes(self) -> int:
        """Peak resident set size of this process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def peak_flops(self, dtype: str) -> float | None:
        """Not known: it depends on the host, its clock and its other users."""
        return None

    def tools(self) -> DeviceTools:
        """The host's own."""
        return DeviceTools()

    def kernels(self) -> Sequence[Impl]:
        """torch's fused AdamW; oneDNN and torch's own CPU kernels lie behind `torch`."""
        from loongforge_backends.common import fused_adamw

        return [fused_adamw()]

    def refused_kernels(self) -> Mapping[tuple[str, str], str]:
        """None."""
        return {}
