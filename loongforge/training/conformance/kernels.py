"""Stage `ops`: every implementation that can run here, against the plain formula in float64 on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from loongforge.kernels import reference
from loongforge.kernels.backend import Backend
from loongforge.kernels.cases import Case, cases, placed, run
from loongforge.kernels.generic import generic
from loongforge.kernels.impl import Impl
from loongforge.kernels.ops import OPS
from loongforge.training.conformance.context import Context
from loongforge.training.conformance.outcome import Check

_FLOORS = {torch.float32: 1e-5, torch.bfloat16: 3.2e-2, torch.float16: 8e-3}
"""Relative to the largest number of the result: what two orders of the same sums may differ by (8 units of rounding
in half precision: torch's own LayerNorm adds up the rows of its weight's gradient in it)."""
_FACTOR = 2.0  # times the error of the plain formula in the same dtype


def usable(backend: Backend) -> Iterator[Impl]:
    """Implementations that can run here, but the references."""
    refused = backend.refused_kernels()
    for impl in [*generic(), *backend.kernels()]:
        if impl.name != "reference" and (impl.op, impl.name) not in refused and impl.missing() is None:
            yield impl


def kernels(context: Context) -> list[Check]:
    """Of all ops; the names of checks begin with `OP/IMPLEMENTATION`."""
    checks = []
    for impl in usable(context.backend):
        label = f"{impl.op}/{impl.name}"
        if not impl.differentiable:
            checks.append(Check(f"{label} has no gradients and is not for training", True))
        elif impl.op == "adamw":
            checks.append(_adamw(label, _with_fault(impl, context), context.device))
        else:
            checks += _of_implementation(label, impl, context)
    return [*checks, *_covered(context)]


def _covered(context: Context) -> Iterator[Check]:
    """An op without a check would look like one that passed."""
    for op in OPS:
        if op != "adamw":
            found = _of_implementation(f"{op}/reference", _reference(op), context)
            yield from found


def _reference(op: str) -> Impl:
    return next(impl for impl in generic() if (impl.op, impl.name) == (op, "reference"))


def _dtypes(backend: Backend) -> list[torch.dtype]:
    named = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return [torch.float32, *(dtype for name, dtype in named.items() if backend.capability(name).value == "yes")]


def _of_implementation(label: str, impl: Impl, context: Context) -> list[Check]:
    checks, taken = [], 0
    function = _with_fault(impl, context)
    for dtype in _dtypes(context.backend):
        for number, case in enumerate(cases(impl.op)):
            arguments = placed(impl.op, case, dtype, context.device)
            if impl.refuses is not None and impl.refuses(*arguments.args, **arguments.kwargs):
                continue
            taken += 1
            checks.append(_compare(f"{label} {str(dtype)[6:]} case {number}", function, impl.op, case, dtype, context))
    return [*checks, Check(f"{label} takes some of the cases", taken > 0)]


def _compare(
    name: str, function: Callable[..., Any], op: str, case: Case, dtype: torch.dtype, context: Context
) -> Check:
    case = placed(op, case, dtype)  # rounded once, so that all begin with the same numbers
    exact = _results(getattr(reference, op), op, case, torch.float64, None)
    plain = _results(getattr(reference, op), op, case, dtype, None)
    mine = _results(function, op, case, dtype, context.device)
    if [x.shape for x in mine] != [x.shape for x in exact]:
        return Check(name, False, note=f"shapes {[tuple(x.shape) for x in mine]}")
    excess, limit = 0.0, 0.0
    for found, usual, right in zip(mine, plain, exact, strict=True):
        scale = float(right.abs().max()) if right.numel() else 0.0
        error, allowed = _error(found, right), _FACTOR * _error(usual, right) + _FLOORS[dtype] * max(scale, 1e-3)
        if not error / allowed <= excess:
            excess, limit = error / allowed, allowed
    return Check.below(name, excess, 1.0, f"of an allowed difference of {limit:.1e}")


def _results(
    function: Callable[..., Any], op: str, case: Case, dtype: torch.dtype, device: torch.device | None
) -> list[torch.Tensor]:
    outputs, grads = run(function, op, case, dtype, device)
    return [x.double() for x in [*outputs, *grads]]


def _error(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).abs().max()) if right.numel() else 0.0


def _adamw(label: str, function: Callable[..., Any], device: torch.device) -> Check:
    """Ten steps, against float64 on the host."""
    start = [torch.sin(torch.arange(37.0)), torch.cos(torch.arange(24.0)).view(4, 6)]
    options = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    worst = 0.0
    for decoupled in (True, False):
        mine = _trained(function, start, torch.float32, device, decoupled, options)
        right = _trained(reference.adamw, start, torch.float64, None, decoupled, options)
        worst = max(worst, *(_error(a.cpu().double(), b) for a, b in zip(mine, right, strict=True)))
    return Check.below(f"{label} ten steps", worst, 1e-6)


def _trained(
    function: Callable[..., Any],
    start: list[torch.Tensor],
    dtype: torch.dtype,
    device: torch.device | None,
    decoupled: bool,
    options: dict[str, Any],
) -> list[torch.Tensor]:
    params = [x.to(device, dtype, copy=True) for x in start]
    means, squares = [torch.zeros_like(x) for x in params], [torch.zeros_like(x) for x in params]
    for step in range(1, 11):
        grads = [(x * step).to(device, dtype) for x in start]
        function(params, grads, means, squares, step, decoupled=decoupled, **options)
    return params


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * 1.05


def _with_fault(impl: Impl, context: Context) -> Callable[..., Any]:
    """The implementation; with a planted fault its values or its gradients are 5 % too large."""
    function = impl.load()
    if context.planted(f"op:{impl.op}") and impl.op == "adamw":
        return lambda *args, lr, **kwargs: function(*args, lr=lr * 1.05, **kwargs)

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        outputs = function(*args, **kwargs)
        first, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
        first = first * 1.05 if context.planted(f"op:{impl.op}") else _ScaledGradient.apply(first)
        return (first, *rest) if rest else first

    return spoilt if context.fault in (f"op:{impl.op}", f"grad:{impl.op}") else function
