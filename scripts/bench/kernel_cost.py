"""What the kernel registry costs: training steps through the ops against steps whose modules call the kernels directly.

Both are the same model in one process, in alternating blocks, in seconds of the processor: others' work does not count.

    python scripts/bench/kernel_cost.py [--model tiny|small] [--threads 1] [--blocks 20] [--steps 5] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
import timeit
from collections.abc import Iterator

from engine_cost import BACKEND, SIZES, Ours, make_batches, make_config  # activates the backend

import torch  # isort: skip
from loongforge.kernels import ops
from loongforge.parallel.groups import make_groups
from loongforge.parallel.layout import Layout
from loongforge.parallel.session import joined_world


@contextlib.contextmanager
def direct() -> Iterator[None]:
    """The names of the ops are the kernels themselves."""
    before = {op: getattr(ops, op) for op in ops.OPS}
    for op in ops.OPS:
        setattr(ops, op, ops.bound[op])
    try:
        yield
    finally:
        for op, function in before.items():
            setattr(ops, op, function)


def _seconds(side: Ours, batches: list) -> float:  # type: ignore[type-arg]
    began = time.process_time()
    for batch in batches:
        side.step(batch)
    return time.process_time() - began


def _calls(side: Ours, batches: list) -> int:  # type: ignore[type-arg]
    """Calls of ops in a step, those of the backward pass left out."""
    count = 0

    def counted(function):  # type: ignore[no-untyped-def]
        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal count
            count += 1
            return function(*args, **kwargs)

        return call

    before = dict(ops.bound)
    ops.bound.update({op: counted(function) for op, function in before.items()})
    side.step(batches[0])
    ops.bound.update(before)
    return count


def _call_ns() -> float:
    """What an op adds to a kernel, in nanoseconds."""
    before, times = ops.bound["gelu"], {}
    ops.bound["gelu"] = kernel = lambda x: x
    for way, function in {"op": ops.gelu, "kernel": kernel}.items():
        times[way] = min(timeit.repeat(lambda function=function: function(0), number=10_000, repeat=20))
    ops.bound["gelu"] = before
    return (times["op"] - times["kernel"]) / 10_000 * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = make_config(SIZES[args.model])
    batches = make_batches(config, SIZES[args.model], args.steps)
    with joined_world(BACKEND):
        ours = Ours(config, make_groups(Layout.from_model(config.model, 1), BACKEND.dist_backend))
        _seconds(ours, batches)
        calls, ratios, steps = _calls(ours, batches), [], []
        for number in range(args.blocks):
            pair = {}
            for way in ("ops", "direct") if number % 2 else ("direct", "ops"):
                with direct() if way == "direct" else contextlib.nullcontext():
                    pair[way] = _seconds(ours, batches)
            ratios.append(pair["ops"] / pair["direct"])
            steps.append(pair["ops"] / len(batches))
    call_ns = _call_ns()
    result = {
        "model": args.model,
        "calls_per_step": calls,
        "call_ns": round(call_ns),
        "calls_share_of_step": calls * call_ns * 1e-9 / statistics.median(steps),
        "step_ms": round(statistics.median(steps) * 1e3, 3),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
