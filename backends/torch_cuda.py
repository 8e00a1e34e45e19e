"""Devices that torch reaches through `torch.cuda`: NVIDIA's, and those of a vendor that stands in for CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loongforge_backends.common import HostTimer

if TYPE_CHECKING:
    import torch


class TorchCudaDevices:
    """The part of a backend that concerns its devices."""

    torch_device_type = "cuda"
    dist_backend = "cpu:gloo,cuda:nccl"

    def device_count(self) -> int:
        """Devices that this process may use."""
        import torch

        return torch.cuda.device_count()

    def set_threads(self, threads: int) -> None:
        """OpenMP threads of this process, for what the host computes."""
        import torch

        torch.set_num_threads(threads)

    def set_device(self, local_rank: int) -> None:
        """The device of that number."""
        import torch

        torch.cuda.set_device(local_rank % max(1, torch.cuda.device_count()))

    def device(self) -> torch.device:
        """This process's device."""
        import torch

        return torch.device("cuda", torch.cuda.current_device())

    def synchronize(self) -> None:
        """Waits for the device; there is no time limit."""
        import torch

        torch.cuda.synchronize()

    def timer(self) -> HostTimer:
        """The host's clock between two synchronisations: right with every driver, microseconds too long."""
        return HostTimer(self.synchronize)

    def seed(self, seed: int) -> None:
        """The device's generator."""
        import torch

        torch.cuda.manual_seed(seed)

    def rng_state(self) -> torch.Tensor:
        """Of the device's generator."""
        import torch

        return torch.cuda.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        """Of the device's generator."""
        import torch

        torch.cuda.set_rng_state(state)

    def memory(self) -> Mapping[str, int]:
        """The device's, and the allocator's."""
        import torch

        free, total = torch.cuda.mem_get_info()
        stats = torch.cuda.memory_stats()
        named = {"allocated": "allocated_bytes.all.current", "reserved": "reserved_bytes.all.current"}
        return {"total": total, "free": free, **{name: stats[key] for name, key in named.items() if key in stats}}

    def peak_memory_bytes(self) -> int:
        """Most that the allocator has given out."""
        import torch

        return torch.cuda.max_memory_allocated()
