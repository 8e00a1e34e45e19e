"""What `import torch_xmlir` changes in torch, as far as sources say and a machine without cards allows.

Tensors stay on the host: `emulator.device()` says so to the backend, which is the one thing that differs from a card.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from .contract import ContractViolation, require
from .nn.linear import Linear

DEVICES = 8
_real_new_group, _real_init, _real_get_backend = dist.new_group, dist.init_process_group, dist.get_backend


class ProcessGroupXCCL:
    """The name is the trace."""


class _Event:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True  # also before it is recorded

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _Stream:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    @staticmethod
    def priority_range() -> tuple[int, int]:
        raise ContractViolation("streams.no_priority_range")


def _renamed(value: Any) -> Any:
    """`cpu:gloo,cuda:nccl` -> the one library that serves the host here, under the vendor's name."""
    return "kccl" if isinstance(value, str) and "nccl" in value else value


def _with_names(function: Callable[..., Any], place: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("backend", args[place] if len(args) > place else None)
        require("dist.explicit", given is not None)
        return function(*map(_renamed, args), **{name: _renamed(value) for name, value in kwargs.items()})

    return call


def _get_backend(group: Any = None) -> str:
    name = _real_get_backend(group) if group is not None else _real_get_backend()
    return "nccl" if name == "kccl" else name


def _make_kccl(store: Any, rank: int, size: int, timeout: Any) -> Any:
    return dist.ProcessGroupGloo(store, rank, size, timeout)


def _cuda_functions() -> dict[str, Any]:
    current = [0]

    def set_device(device: Any) -> None:
        current[0] = int(device)

    def memory() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    return {
        "device_count": lambda: DEVICES,
        "set_device": set_device,
        "current_device": lambda: current[0],
        "get_device_name": lambda device=None: "GPU",
        "get_device_capability": lambda device=None: (8, 6),
        "synchronize": lambda device=None: None,
        "mem_get_info": lambda device=None: (103079215104 - memory(), 103079215104),
        "memory_stats": lambda device=None: {},
        "max_memory_allocated": lambda device=None: memory(),
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "Event": _Event,
        "Stream": _Stream,
    }


def install() -> None:
    """Takes over; once."""
    for name, value in _cuda_functions().items():
        setattr(torch.cuda, name, value)
    torch.cuda.nccl.version = lambda: (2, 27, 0)  # torch's own logs ask where the backend is called nccl
    torch.compile = lambda model=None, **_: model if model is not None else (lambda function: function)
    torch.nn.Linear = Linear
    dist.ProcessGroupNCCL = ProcessGroupXCCL
    dist.Backend.register_backend("kccl", _make_kccl, devices=["cpu"])
    dist.init_process_group = _with_names(_real_init, 0)
    dist.new_group = _with_names(_real_new_group, 2)
    dist.get_backend = _get_backend
    library = torch.library.Library("custom_ops", "FRAGMENT")
    library.define("rms_layer_norm(Tensor x, Tensor weight, float eps) -> Tensor")
    _kept.append(library)


_kept: list[Any] = []


def activate() -> None:
    """megatron-core must not ask for CUDA devices that are not there: as the CPU backend has it."""
    from loongforge_backends.cpu import compat

    compat.install()


def device() -> torch.device:
    """Where tensors are: the host."""
    return torch.device("cpu")
