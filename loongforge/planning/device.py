"""What a device can do, as data; and this machine's CPU, measured on the spot."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from loongforge.config.errors import UserError, did_you_mean

FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device of a cluster. Rates are of one device; bandwidths of one direction."""

    name: str
    memory_gib: float
    peak_tflops: dict[str, float]
    """By dtype, dense."""
    memory_gb_per_s: float
    per_node: int
    """Devices of a node."""
    intra_gb_per_s: float
    """Between devices of a node."""
    inter_gb_per_s: float
    """Between nodes."""
    latency_us: float
    """Of one step of a collective."""
    efficiency: float
    """Part of the peak that large matrix products reach."""
    layer_overhead_us: float
    """Time of a layer's forward pass that does not depend on its size."""
    sources: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    """Figures without a source."""

    def flops_per_s(self, dtype: str) -> float:
        """What large matrix products reach."""
        return self.peak_tflops[dtype] * 1e12 * self.efficiency

    @property
    def usable_bytes(self) -> float:
        """Memory; a tenth is left to the system and to fragments."""
        return 0.9 * self.memory_gib * 2**30

    def bandwidth(self, extent: int) -> float:
        """Bytes per second between the ranks of a group that spans `extent` neighbouring ranks."""
        return 1e9 * (self.intra_gb_per_s if extent <= self.per_node else self.inter_gb_per_s)


def known_devices() -> list[str]:
    """Names that `load_device` takes, besides files."""
    return ["cpu", *sorted(path.stem for path in FOLDER.glob("*.yaml"))]


def load_device(name: str, *, nproc: int = 1, threads: int = 1) -> Device:
    """A device by name or from a YAML file of the same fields; `cpu` is measured here and now.

    Args:
        name: `cpu`, a known name, or a file.
        nproc: Processes that will share this machine's cores.
        threads: Of each.

    Raises:
        UserError: there is no such device, or the file is not one.
    """
    if name == "cpu":
        return measure_cpu(nproc, threads)
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name.lower()}.yaml"
    if not path.is_file():
        known = known_devices()
        raise UserError(
            f"--device {name} is not known.{did_you_mean(name, known)} Known: {', '.join(known)}, or a YAML file"
        )
    return _from_file(path)


def _from_file(path: Path) -> Device:
    values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = [item.name for item in fields(Device)]
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no device: it needs the keys {', '.join(names)}")
    wrong = [key for key in values if key not in names]
    missing = [key for key in names if key not in values and key not in ("sources", "assumed")]
    if wrong or missing:
        lines = [f"unknown key '{key}'.{did_you_mean(key, names)}" for key in wrong]
        lines += [f"'{key}' is missing" for key in missing]
        raise UserError(f"{path} does not describe a device:\n" + "\n".join(f"  - {line}" for line in lines))
    return Device(**values)


def measure_cpu(nproc: int, threads: int) -> Device:
    """This machine: products and copies timed for a fraction of a second; its cores are shared by `nproc` processes."""
    import os

    import torch

    torch.set_num_threads(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = min(1.0, cores / (threads * nproc))
    size = 768
    a, b = torch.randn(size, size), torch.randn(size, size)
    flops = 2 * size**3 / _best_time(lambda: a @ b)
    small = torch.randn(8, 32)
    overhead = 40 * _best_time(lambda: small * 2.0)  # a layer's forward pass is about 40 operations
    copied = torch.empty(16 * 2**20)
    copy = 2 * copied.numel() * 4 / _best_time(lambda: copied.clone(), repeats=3)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / nproc
    return Device(
        name=f"this CPU, {threads} thread(s) for each of {nproc}",
        memory_gib=memory / 2**30,
        peak_tflops={"fp32": flops * share / 1e12, "bf16": flops * share / 1e12},
        memory_gb_per_s=copy * share / 1e9,
        per_node=max(nproc, 1),
        intra_gb_per_s=copy * share / 8e9,
        inter_gb_per_s=copy * share / 8e9,
        latency_us=100,
        efficiency=1.0,
        layer_overhead_us=overhead / share * 1e6,
        sources=["measured now: a 768 x 768 product, a copy of 64 MiB, a small operation"],
        assumed=["intra_gb_per_s (an eighth of a copy: loopback sockets)", "latency_us"],
    )


def _best_time(work: Any, repeats: int = 8) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
