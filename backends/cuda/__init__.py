"""The CUDA backend: NVIDIA GPUs, NCCL. Written to documentation; not yet run on a GPU by this project."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loongforge_backends.common import package_versions
from loongforge_backends.cuda.tools import CudaTools
from loongforge_backends.torch_cuda import TorchCudaDevices

from loongforge.kernels.backend import Detection, Problem, Support

if TYPE_CHECKING:
    from loongforge.kernels.impl import Impl

_SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")  # the last: Windows' Linux subsystem
_CAPABILITIES = {
    "bf16": Support("yes", "documented: NVIDIA, since Ampere"),
    "fp16": Support("yes", "documented: NVIDIA"),
    "fp8": Support("unknown", "documented: NVIDIA, since Ada and Hopper; not used here yet"),
    "fp64": Support("yes", "documented: NVIDIA"),
    "compile": Support("yes", "documented: torch"),
    "triton": Support("yes", "documented: torch"),
    "graph": Support("yes", "documented: torch"),
    "event_timing": Support("yes", "documented: torch"),
    "memory_stats": Support("yes", "documented: torch"),
    "pinned_async": Support("yes", "documented: torch"),
    "reduce_avg": Support("yes", "documented: NCCL 2.10"),
    "reduce_premul_sum": Support("yes", "documented: NCCL 2.11"),
    "comm_hook": Support("yes", "documented: torch"),
    "stream_priority": Support("yes", "documented: torch"),
    "sdpa_vision": Support("yes", "documented: torch"),
    "expandable_segments": Support("yes", "documented: torch"),
}
_PEAKS = {  # dense TFLOP/s by the name that the driver gives, from NVIDIA's data sheets
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "H100 NVL": {"bf16": 835e12, "fp32": 60e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "A800": {"bf16": 312e12, "fp32": 19.5e12},
}


def signs() -> tuple[str, ...]:
    """What speaks for an NVIDIA driver on this machine; cheap."""
    found = [path for path in _SIGNS if Path(path).exists()]
    tool = shutil.which("nvidia-smi")
    return tuple([*found, *([f"nvidia-smi at {tool}"] if tool else [])])


class CudaBackend(TorchCudaDevices):
    """NVIDIA GPUs."""

    name = "cuda"
    title = "NVIDIA CUDA"
    probe_order = 20
    shared_device = False
    hidden_by: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": ""}

    def detect(self) -> Detection:
        """torch is asked only where a driver shows itself."""
        found = signs()
        if not found:
            return Detection("absent", ("no NVIDIA driver: none of /dev/nvidiactl, /proc/driver/nvidia, nvidia-smi",))
        import torch

        built = torch.version.cuda
        if built is None:
            problem = Problem(f"torch {torch.__version__} is built without CUDA", "install torch for CUDA", fatal=True)
            return Detection("no_device", found, (problem,))
        evidence = (*found, f"torch {torch.__version__} for CUDA {built}")
        if not torch.cuda.is_available() or torch.cuda.device_count() == 0:
            fix = "is the driver new enough, and CUDA_VISIBLE_DEVICES not empty?"
            return Detection("no_device", evidence, (Problem("torch sees no GPU", fix, fatal=True),))
        devices = f'{torch.cuda.device_count()} x "{torch.cuda.get_device_name(0)}"'
        return Detection("ok", (*evidence, devices), self._problems())

    def _problems(self) -> tuple[Problem, ...]:
        found = []
        if importlib.util.find_spec("torch_xmlir") is not None:
            found.append(Problem("torch_xmlir is installed: these may be Kunlun devices", "backend=kunlun", fatal=True))
        return tuple(found)

    def versions(self) -> Mapping[str, str]:
        """Of Python and everything that brings kernels."""
        import torch

        packages = package_versions(
            "torch", "megatron-core", "flash-attn", "liger-kernel", "transformer-engine", "triton"
        )
        return {**packages, "cuda": str(torch.version.cuda)}

    def capability(self, name: str) -> Support:
        """See the table above."""
        return _CAPABILITIES[name]

    def activate(self) -> None:
        """megatron-core runs on CUDA as it is; it gets an AdamW where neither TransformerEngine nor apex is there."""
        from loongforge.kernels import adam

        adam.install()

    def peak_flops(self, dtype: str) -> float | None:
        """From NVIDIA's data sheets; None for a GPU that is not in the table."""
        import torch

        name = torch.cuda.get_device_name()
        known = next((peaks for part, peaks in _PEAKS.items() if part in name), None)
        return known.get(dtype) if known else None

    def tools(self) -> CudaTools:
        """CUDA's events, NVTX, CUPTI and the allocator's history."""
        return CudaTools()

    def kernels(self) -> Sequence[Impl]:
        """Of torch, flash-attn, liger and Transformer Engine, where they are installed."""
        from loongforge_backends.cuda.kernels import kernels

        return kernels()

    def refused_kernels(self) -> Mapping[tuple[str, str], str]:
        """None."""
        return {}
