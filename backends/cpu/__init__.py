"""The CPU backend: gloo collectives, megatron-core without CUDA."""

from __future__ import annotations

import resource


class CpuBackend:
    """Runs everything on the host."""

    name = "cpu"
    torch_device_type = "cpu"
    dist_backend = "gloo"

    def available(self) -> bool:
        """Always."""
        return True

    def priority(self) -> int:
        """Behind every accelerator."""
        return 0

    def device_count(self) -> int:
        """One process by default; more are asked for with `launcher.nproc`."""
        return 1

    def activate(self) -> None:
        """Lets the unmodified megatron-core wheel run on a CPU-only torch."""
        from loongforge_backends.cpu import adam, compat

        if compat.install():
            adam.install()

    def set_threads(self, threads: int) -> None:
        """OpenMP threads of this process."""
        import torch

        torch.set_num_threads(threads)

    def peak_memory_bytes(self) -> int:
        """Peak resident set size of this process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def peak_flops(self, dtype: str) -> float | None:
        """Not known: it depends on the host, its clock and its other users."""
        return None
