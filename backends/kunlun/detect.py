"""Whether this is a Kunlun machine, and whether `torch_xmlir` has taken over torch.

It stands in for CUDA, so CUDA's own signs are no evidence; what is looked for are the traces of the takeover. Facts
with sources: docs/kunlun.md.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from loongforge_backends.kunlun.environment import advice, refusals

from loongforge.kernels.backend import Detection, Problem

_SIGNS = ("/proc/kunlun", "/usr/local/xpu")
_INSTALL = "install XPyTorch, the vendor's package that brings torch_xmlir"


def signs() -> list[str]:
    """What speaks for the hardware, without importing anything."""
    found = [path for path in _SIGNS if Path(path).exists()]
    found += [str(path) for path in sorted(Path("/dev").glob("xpu*"))[:1]]
    if shutil.which("xpu-smi") and not shutil.which("nvidia-smi"):
        found.append("xpu-smi without nvidia-smi")
    return found


def is_emulated(package: ModuleType) -> bool:
    """Whether the package is the tests' stand-in."""
    return bool(getattr(package, "IS_EMULATOR", False))


def traces(torch: ModuleType) -> Iterator[str]:
    """What the takeover leaves in torch."""
    group = getattr(torch.distributed, "ProcessGroupNCCL", None)
    if "XCCL" in getattr(group, "__name__", ""):
        yield "torch's NCCL process group is XCCL"
    if hasattr(torch.ops.custom_ops, "rms_layer_norm"):
        yield "torch.ops.custom_ops.rms_layer_norm exists"
    if torch.nn.Linear.__module__.startswith("torch_xmlir"):
        yield "torch.nn.Linear is torch_xmlir's"


def detect(environ: Mapping[str, str] = os.environ) -> Detection:
    """See `Backend.detect`; order: the package, the environment, the takeover, a device."""
    hardware = signs()
    if importlib.util.find_spec("torch_xmlir") is None:
        if hardware:
            return Detection(
                "broken", tuple(hardware), (Problem("torch_xmlir is not installed", _INSTALL, fatal=True),)
            )
        return Detection("absent", ("no torch_xmlir, no Kunlun device",))
    evidence = [*hardware, "torch_xmlir is installed"]
    refused = tuple(refusals(environ))
    if refused:  # before the import, which acts on these
        return Detection("broken", tuple(evidence), refused)
    try:
        import torch
        import torch_xmlir
    except Exception as error:  # the vendor's packages can fail in any way
        problem = Problem(f"torch_xmlir does not import: {type(error).__name__}: {error}", _INSTALL, fatal=True)
        return Detection("broken", tuple(evidence), (problem,))
    found = list(traces(torch))
    if not found:
        text = "torch_xmlir is installed and has not taken over torch; its errors go to stderr only"
        fix = "is DISABLE_XPYTORCH set, xcudart on LD_LIBRARY_PATH, its .pth hook in this environment's site-packages?"
        return Detection("broken", tuple(evidence), (Problem(text, fix, fatal=True),))
    evidence += found
    count = torch.cuda.device_count()
    if count == 0:
        problem = Problem("torch_xmlir sees no device", "is CUDA_VISIBLE_DEVICES empty?", fatal=True)
        return Detection("no_device", tuple(evidence), (problem,))
    evidence.append(f'{count} x "{torch.cuda.get_device_name(0)}"')
    return Detection("emulated" if is_emulated(torch_xmlir) else "ok", tuple(evidence), tuple(advice(environ)))
