"""What a device can do, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from loongforge.config.errors import UserError, did_you_mean

_WIDEST = 512
"""Wider layers are no faster by the FLOP, and take long to measure."""
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


def load_device(name: str, *, nproc: int = 1, threads: int = 1, width: int = 256) -> Device:
    """A device by name or from a YAML file of the same fields; `cpu` is measured here and now.

    Args:
        name: `cpu`, a known name, or a file.
        nproc: Processes that will share this machine's cores; for `cpu`, as the next two.
        threads: Of each.
        width: Of the model's layers.

    Raises:
        UserError: there is no such device, or the file is not one.
    """
    if name == "cpu":
        from loongforge.planning.this_cpu import measure_cpu

        return measure_cpu(nproc=nproc, threads=threads, width=min(width, _WIDEST))
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
