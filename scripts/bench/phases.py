"""What the always-on phase times cost: the clock's own work in a training step, as a part of that step.

The step's calls of the clock are noted once and repeated alone many times; both sides are counted in CPU time of this
process, so that other users of the machine do not matter. Also timed: the mean over the ranks that every step takes, on
one rank.

    python scripts/bench/phases.py [--model tiny|small] [--threads 1] [--steps 10] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from engine_cost import BACKEND, SIZES, make_batches, make_config  # activates the backend
from rows import IMAGE_TOKEN

from loongforge.data.batch import IGNORE, Batch
from loongforge.kernels.phases import PhaseClock
from loongforge.model.assembly import build_model
from loongforge.model.execution import Runner
from loongforge.parallel.groups import make_groups
from loongforge.parallel.layout import Layout
from loongforge.parallel.session import joined_world
from loongforge.training.optimizer import Optimizers
from loongforge.training.step_times import mean_over_ranks, with_rest

REPEATS = 2000


class NotedClock(PhaseClock):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__(BACKEND.tools())
        self.calls: list[tuple[str, str]] = []

    def enter(self, name: str) -> None:
        """A phase begins."""
        self.calls.append(("enter", name))
        super().enter(name)

    def leave(self, error: BaseException | None = None) -> None:
        """It ends."""
        self.calls.append(("leave", ""))
        super().leave(error)

    def switch(self, name: str) -> None:
        """Another takes its place."""
        self.calls.append(("switch", name))
        super().switch(name)


def step(runner: Runner, optimizers: Optimizers, clock: PhaseClock, batch: Batch) -> None:
    """As the trainer's."""
    clock.start()
    with clock("data"):
        batch = batch.to(runner.device)
    with clock("optimizer"):
        optimizers.clear_gradients()
    runner.train({0: [batch]}, int((batch.labels != IGNORE).sum()))
    with clock("reduce"):
        optimizers.reduce_gradients()
    with clock("optimizer"):
        optimizers.step(1e-4)
    mean_over_ranks(with_rest(clock.stop(), 0.0))


def repeated(calls: list[tuple[str, str]]) -> Callable[[], None]:
    """The clock's part of a step."""
    clock = PhaseClock(BACKEND.tools())
    made: list[tuple[Any, tuple[str, ...]]] = [
        (getattr(clock, method), (name,) if name else ()) for method, name in calls
    ]

    def once() -> None:
        clock.start()
        for call, arguments in made:
            call(*arguments)
        mean_over_ranks(with_rest(clock.stop(), 0.0))

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SIZES), default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = SIZES[args.model]
    config = make_config(sizes)
    seconds = []
    with joined_world(BACKEND):
        groups = make_groups(Layout.from_model(config.model, 1), BACKEND.dist_backend)
        clock = NotedClock()
        model = build_model(config, groups, image_token=IMAGE_TOKEN)
        runner, optimizers = Runner(model, groups, phases=clock), Optimizers(config, model, groups)
        for batch in make_batches(config, sizes, args.steps + 2):
            clock.calls.clear()
            began = time.process_time()
            step(runner, optimizers, clock, batch)
            seconds.append(time.process_time() - began)
        once = repeated(list(clock.calls))
        began = time.process_time()
        for _ in range(REPEATS):
            once()
        cost = (time.process_time() - began) / REPEATS
    whole = statistics.median(seconds[2:])
    result = {
        "model": args.model,
        "threads": args.threads,
        "calls_per_step": len(clock.calls),
        "clock_us": round(cost * 1e6, 1),
        "step_ms": round(whole * 1e3, 2),
        "share": round(cost / whole, 6),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
