"""megatron-core 0.16 on a CPU-only torch: a fake `torch.cuda` that only modules of megatron.core see.

A hook on the import system runs after each `megatron.core.*` module and rebinds its global names `torch` and
`dist` to proxies. Everything else in the process keeps the real torch. What cannot be reached by a name in a
module (methods of Tensor and Module) is patched globally, and changes nothing that worked before.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import logging
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

PACKAGE = "megatron.core"
_FACTORIES = [
    "tensor",
    "as_tensor",
    "zeros",
    "ones",
    "empty",
    "full",
    "arange",
    "eye",
    "linspace",
    "rand",
    "randn",
    "randint",
    "randperm",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_strided",
]
_NO_OPS = ["set_device", "synchronize", "empty_cache", "ipc_collect", "set_stream", "reset_peak_memory_stats"]
_ZEROS = ["memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"]


class _Null:
    """Stands for streams and events: any constructor, any method, a context manager."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def __enter__(self) -> _Null:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        return event or _Null()

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _CudaStub(types.ModuleType):
    """`torch.cuda` as megatron.core sees it; what is not replaced is the real attribute."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class _Proxy(types.ModuleType):
    """A module that shows another one, but for the names set on it."""

    def __init__(self, target: types.ModuleType) -> None:
        super().__init__(target.__name__)
        self.__dict__.update({k: v for k, v in vars(target).items() if not k.startswith("__")})
        self.__dict__["_target"] = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_target"], name)  # added to the target later


def _set_cuda_rng_state(new_state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
    torch.set_rng_state(new_state)


def _get_cuda_rng_state(device: str = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    return torch.get_rng_state()


def _maybe_move_tensor_to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


def _cuda_stub() -> _CudaStub:
    stub = _CudaStub("torch.cuda")
    names: dict[str, Any] = {
        "current_device": lambda: "cpu",
        "device_count": lambda: 1,
        "is_available": lambda: False,
        "is_initialized": lambda: False,
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda *a, **k: _Null(),
        "default_stream": lambda *a, **k: _Null(),
        "stream": lambda *a, **k: contextlib.nullcontext(),
        "device": lambda *a, **k: contextlib.nullcontext(),
        "nvtx": _Null(),
        "get_rng_state": lambda *a, **k: torch.get_rng_state(),
        "set_rng_state": lambda state, *a, **k: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "memory_stats": lambda *a, **k: {},
        "get_device_capability": lambda *a, **k: (0, 0),
        "OutOfMemoryError": torch.OutOfMemoryError,
        "default_generators": [torch.default_generator],
        "random": stub,
    }
    names.update({name: _Null for name in ("Stream", "Event", "ExternalStream")})
    names.update({name: (lambda *a, **k: None) for name in _NO_OPS})
    names.update({name: (lambda *a, **k: 0) for name in _ZEROS})
    stub.__dict__.update(names)
    return stub


def _on_host(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = "cpu"
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapper


def _on_gloo(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("backend") in ("nccl", "cuda:nccl"):
            kwargs["backend"] = "gloo"
        kwargs.pop("device_ids", None)
        return function(*args, **kwargs)

    return wrapper


class _AutocastMeta(type):
    def __call__(cls, device_type: str = "cpu", *args: Any, **kwargs: Any) -> torch.autocast:
        return torch.autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


class _Autocast(metaclass=_AutocastMeta):
    """`torch.autocast` whose device type "cuda" means the host."""


def _proxies() -> tuple[_Proxy, _Proxy]:
    dist_proxy = _Proxy(torch.distributed)
    for name in ("new_group", "new_subgroups", "new_subgroups_by_enumeration", "barrier"):
        setattr(dist_proxy, name, _on_gloo(getattr(torch.distributed, name)))
    torch_proxy = _Proxy(torch)
    for name in _FACTORIES:
        setattr(torch_proxy, name, _on_host(getattr(torch, name)))
    torch_proxy.__dict__.update(cuda=_cuda_stub(), distributed=dist_proxy, autocast=_Autocast)
    return torch_proxy, dist_proxy


class _Rebinder(importlib.abc.MetaPathFinder):
    """Gives each module of megatron.core the proxies right after it has run."""

    def __init__(self) -> None:
        self.torch_proxy, self.dist_proxy = _proxies()

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            run = spec.loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                run(module)
                self.rebind(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def rebind(self, module: types.ModuleType) -> None:
        if getattr(module, "torch", None) is torch:
            module.torch = self.torch_proxy  # type: ignore[attr-defined]
        if getattr(module, "dist", None) is torch.distributed:
            module.dist = self.dist_proxy  # type: ignore[attr-defined]
        if hasattr(module, "maybe_move_tensor_to_cpu"):
            module.__dict__["maybe_move_tensor_to_cpu"] = _maybe_move_tensor_to_cpu
        name = module.__name__.removeprefix(PACKAGE + ".")
        if name == "tensor_parallel.random":
            module._set_cuda_rng_state = _set_cuda_rng_state  # type: ignore[attr-defined]
            module._get_cuda_rng_state = _get_cuda_rng_state  # type: ignore[attr-defined]
            logging.getLogger(module.__name__).addFilter(lambda r: "CPU RNG state changed" not in r.getMessage())
        elif name == "jit":
            module.disable_jit_fuser()  # torch.compile: seconds of g++ for each small op
        elif name == "transformer.moe.moe_utils":
            module.__dict__.setdefault("te_general_gemm", None)


def _patch_methods() -> None:
    """What megatron.core reaches through objects: `.cuda()`, and type names that it compares with `torch.cuda.*`."""
    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, *a, **k: self  # type: ignore[method-assign, assignment]
    real_type = torch.Tensor.type

    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = real_type(self, *args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if args or kwargs or not caller.startswith(PACKAGE):
            return result
        return result.replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = type_  # type: ignore[method-assign, assignment]


def install() -> bool:
    """Installs the layer; False (and no change) where torch has a CUDA-like device. Idempotent."""
    if torch.cuda.is_available():
        return False
    if not any(isinstance(finder, _Rebinder) for finder in sys.meta_path):
        assert PACKAGE not in sys.modules, "the CPU backend must be activated before megatron.core is imported"
        sys.meta_path.insert(0, _Rebinder())
        # TransformerEngine and apex are not to be had here; megatron-core says so several times at import.
        warnings.filterwarnings("ignore", module=r"megatron\.core")
        _patch_methods()
    return True
