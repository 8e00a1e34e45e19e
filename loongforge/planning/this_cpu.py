"""This machine's CPU as a device, measured on the spot. The one place of this room that imports torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from loongforge.planning.device import Device

_SHORT, _LONG = 8, 512
"""Tokens of the two passes that tell fixed costs from those that grow."""


def measure_cpu(*, nproc: int, threads: int, width: int) -> Device:
    """Times forward and backward passes of a layer, and copies, for about a second.

    Args:
        nproc: Processes that will share the cores.
        threads: Of each.
        width: Of the layer; narrow ones reach less of the peak.
    """
    torch.set_num_threads(threads)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = min(1.0, cores / (threads * nproc))
    layer = _Layer(width)
    short, long = _best_time(lambda: layer.learn(_SHORT)), _best_time(lambda: layer.learn(_LONG))
    flops = (layer.flops(_LONG) - layer.flops(_SHORT)) / max(long - short, 1e-9) * share
    overhead = max(0.0, short * share - layer.flops(_SHORT) / flops) / 3  # of three passes
    copied = torch.empty(16 * 2**20)
    copy = 2 * copied.numel() * 4 / _best_time(lambda: copied.clone(), repeats=3) * share / 1e9
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / nproc
    return Device(
        name=f"this CPU, {threads} thread(s) for each of {nproc}",
        memory_gib=memory / 2**30,
        peak_tflops=dict.fromkeys(("fp32", "bf16"), flops / 1e12),
        memory_gb_per_s=copy,
        per_node=max(nproc, 1),
        intra_gb_per_s=copy / 2,
        inter_gb_per_s=copy / 2,
        latency_us=GLOO_LATENCY_US,
        efficiency=1.0,
        layer_overhead_us=overhead * 1e6,
        sources=[f"measured now: a layer of width {width} on {_SHORT} and {_LONG} tokens, a copy of 64 MiB"],
        assumed=["bandwidth between processes: half of a copy", f"latency of gloo: {GLOO_LATENCY_US} us"],
    )


GLOO_LATENCY_US = 400.0
"""Of a step of a collective between processes of one machine: 0.85 ms for an all-reduce of 4 KiB over 2 processes and
3.4 ms over 4, measured once on a virtual machine with 4 cores."""


class _Layer:
    """A decoder layer in plain torch: four attention products, SwiGLU, two norms."""

    def __init__(self, width: int) -> None:
        self.width, self.heads = width, max(1, width // 64)
        shapes = [(3 * width, width), (width, width), (8 * width, width), (width, 4 * width)]
        self.weights = [torch.randn(shape).mul_(0.02).requires_grad_() for shape in shapes]

    def flops(self, tokens: int) -> float:
        """Of a forward and a backward pass."""
        return 3 * tokens * (2 * sum(weight.numel() for weight in self.weights) + 2 * tokens * self.width)

    def learn(self, tokens: int) -> None:
        """Both passes."""
        qkv, out, up, down = self.weights
        x = torch.ones(1, tokens, self.width)
        parts = F.linear(F.rms_norm(x, (self.width,)), qkv).view(1, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(1, tokens, -1), out)
        gate, inner = F.linear(F.rms_norm(x, (self.width,)), up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * inner, down)
        torch.autograd.grad(x.sum(), self.weights)


def _best_time(work: Callable[[], object], repeats: int = 4) -> float:
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
