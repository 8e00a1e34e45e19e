"""The Kunlun backend: XPUs that torch reaches through `torch_xmlir`, which stands in for CUDA.

Contract-tested against public sources, not hardware-verified (docs/kunlun.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loongforge_backends.common import package_versions
from loongforge_backends.torch_cuda import TorchCudaDevices

from loongforge.kernels.backend import Detection, Support
from loongforge.kernels.tools import DeviceTools

if TYPE_CHECKING:
    import torch

    from loongforge.kernels.impl import Impl

_CAPABILITIES = {
    "bf16": Support("yes", "documented: V, L"),
    "fp16": Support("yes", "documented: V, L"),
    "fp8": Support("no", "documented: V, P"),
    "fp64": Support("no", "documented: FG"),
    "compile": Support("no", "documented: W08, W12 (an identity by default)"),
    "triton": Support("unknown", "documented: FG, FT (through FlagTree)"),
    "graph": Support("unknown", "documented: R and V disagree"),
    "event_timing": Support("no", "documented: R (0 unless a setting that hangs collectives is on)"),
    "memory_stats": Support("unknown", "documented: R and W disagree"),
    "pinned_async": Support("unknown", "documented: nowhere"),
    "reduce_avg": Support("unknown", "documented: CF implies it"),
    "reduce_premul_sum": Support("unknown", "documented: nowhere"),
    "comm_hook": Support("no", "documented: W07"),
    "stream_priority": Support("no", "documented: R"),
    "sdpa_vision": Support("no", "documented: TW (can wedge a card)"),
    "expandable_segments": Support("yes", "documented: L, CF, K"),
}
_SDPA = "scaled_dot_product_attention can wedge a card until it is reset [TW]"


class KunlunBackend(TorchCudaDevices):
    """Kunlun XPUs, P800 and its kin."""

    name = "kunlun"
    title = "Kunlun XPU via torch_xmlir"
    probe_order = 10  # before CUDA, which it looks like
    hidden_by: Mapping[str, str] = {"CUDA_VISIBLE_DEVICES": "", "DISABLE_XPYTORCH": "1"}

    @property
    def shared_device(self) -> bool:
        """Only where there is none: the emulator's processes work on the host."""
        return self._emulator() is not None

    def _emulator(self) -> Any:
        """The tests' stand-in for hardware, or None."""
        import torch_xmlir

        return getattr(torch_xmlir, "emulator", None) if getattr(torch_xmlir, "IS_EMULATOR", False) else None

    def detect(self) -> Detection:
        """See `detect.detect`."""
        from loongforge_backends.kunlun.detect import detect

        return detect()

    def versions(self) -> Mapping[str, str]:
        """Of Python and the vendor's packages; torch_xmlir's version is a mapping of its parts."""
        import torch_xmlir

        parts = {f"torch_xmlir {name}": str(version) for name, version in dict(torch_xmlir.__version__).items()}
        packages = package_versions("torch", "megatron-core", "xmlir", "hydrax", "flash_attn", "transformer_engine")
        return {**packages, **parts}

    def capability(self, name: str) -> Support:
        """See the table above; the keys of sources are those of docs/kunlun.md."""
        return _CAPABILITIES[name]

    def activate(self) -> None:
        """megatron-core gets an AdamW of multi-tensor operations: the vendor's fused one miscounts steps [W09]."""
        emulator = self._emulator()
        if emulator is not None:
            emulator.activate()
        from loongforge.kernels import adam

        adam.install()

    def device(self) -> torch.device:
        """This process's device; the emulator's is the host."""
        emulator = self._emulator()
        return super().device() if emulator is None else emulator.device()

    def peak_flops(self, dtype: str) -> float | None:
        """No public source."""
        return None

    def tools(self) -> DeviceTools:
        """The host's: times between events are 0 [R], and no public source says what traces record."""
        return DeviceTools()

    def kernels(self) -> Sequence[Impl]:
        """The vendor's fused kernels with public training call sites."""
        from loongforge_backends.kunlun.kernels import kernels

        return kernels()

    def refused_kernels(self) -> Mapping[tuple[str, str], str]:
        """What is known to go wrong, or not to exist."""
        return {
            ("attention", "torch"): _SDPA,
            ("attention_varlen", "torch"): _SDPA,
            ("grouped_gemm", "torch"): "no grouped product of its own [P, W07]",
        }
