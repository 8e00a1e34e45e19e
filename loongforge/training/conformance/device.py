"""Stages `device` and `random`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from loongforge.training.conformance.context import Context
from loongforge.training.conformance.outcome import Check

_MIB = 2**20
_BLOCK = 64 * _MIB


def device(context: Context) -> list[Check]:
    """Tensors are where they should be, and sums and products are right."""
    here = torch.ones(3, device=context.device)
    return [
        Check("tensors are on the device", here.device == context.device, note=str(here.device)),
        *_arithmetic(context),
        *_memory(context),
        _timer(context),
    ]


def _arithmetic(context: Context) -> list[Check]:
    where = context.device
    numbers = torch.arange(100_000, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 200, generator=generator), torch.randn(200, 100, generator=generator)
    exact = a.double() @ b.double()
    product = (a.to(where) @ b.to(where)).cpu()
    if context.planted("arithmetic"):
        product[17, 5] += 0.01
    half = (a.to(where, torch.bfloat16) @ b.to(where, torch.bfloat16)).cpu().double()
    strided = a.to(where)[::3, ::2].t().cpu()
    return [
        Check("whole numbers add exactly", torch.equal((numbers.to(where) + 7).cpu(), numbers + 7)),
        Check("strided copies", torch.equal(strided, a[::3, ::2].t())),
        Check.below("fp32 product", _worst(product.double(), exact), 1e-5),
        Check.below("bf16 product", _worst(half, exact), 2e-2),
    ]


def _worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest."""
    return float((found - expected).abs().max() / expected.abs().max())


def _memory(context: Context) -> list[Check]:
    backend = context.backend
    before = backend.peak_memory_bytes()
    block = torch.ones(_BLOCK // 4 + before // 4, device=context.device)
    grown = 0 if context.planted("memory") else backend.peak_memory_bytes() - before
    figures = backend.memory()
    del block
    known = Check("figures that are there are not 0", all(value > 0 for value in figures.values()), note=str(figures))
    return [known, Check("the peak follows what is held", grown >= _BLOCK // 2, grown / _MIB, note="MiB")]


def _timer(context: Context) -> Check:
    matrix = torch.randn(512, 512, device=context.device)
    (matrix @ matrix).sum().item()
    began = time.perf_counter()
    with context.backend.timer() as timer:
        for _ in range(50):
            matrix = (matrix @ matrix).clamp_(-1, 1)
    host = time.perf_counter() - began
    seconds = 0.0 if context.planted("timer") else timer.seconds
    near = host / 10 <= seconds <= 1.1 * host
    return Check("the timer agrees with the host's clock", near, seconds, note=f"host {host:.2e} s")


_DRAWS: dict[str, Callable[[torch.device], torch.Tensor]] = {
    "uniform": lambda where: torch.rand(1000, device=where),
    "normal": lambda where: torch.randn(1000, device=where),
    "dropout": lambda where: torch.nn.functional.dropout(torch.ones(1000, device=where), 0.5),
    "permutation": lambda where: torch.randperm(1000, device=where),
}


def random(context: Context) -> list[Check]:
    """The same seed, the same numbers; a state brings them back; another seed, others."""
    backend, where = context.backend, context.device
    checks = []
    for name, draw in _DRAWS.items():
        backend.seed(7)
        first, state = draw(where).cpu(), backend.rng_state()
        second = draw(where).cpu()
        backend.seed(7)
        again = draw(where).cpu()
        if context.planted("random"):
            backend.seed(8)
            again = draw(where).cpu()
        backend.set_rng_state(state)
        checks += [
            Check(f"{name}: from the seed", torch.equal(first, again)),
            Check(f"{name}: from the state", torch.equal(second, draw(where).cpu())),
            Check(f"{name}: goes on", not torch.equal(first, second)),
        ]
        backend.seed(9)
        checks.append(Check(f"{name}: another seed", not torch.equal(first, draw(where).cpu())))
    return checks
