"""Packed steps of ours against transformers' Trainer and a plain loop of the same model, padded and packed.

The model `small` of engine_cost.py (7.86 M parameters, 64 image tokens), batches of 16 samples with lognormal text
lengths, at most 256 tokens. Ours: documents of one row, attended to one by one. Theirs: rows padded to the longest, and
rows of 512 with positions that restart, which transformers masks densely. The Trainer is transformers' own, on the same
samples. All make their batches while they train, in alternating blocks of one run.

    python scripts/bench/packing.py [--processes 1|2] [--threads 4] [--blocks 6] [--steps 5] [--samples 16] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from engine_cost import BACKEND, SIZES, Ours, Plain, make_config  # activates the backend

import torch  # isort: skip
from hf_trainer import Collate, TrainerSide  # isort: skip
from rows import Sample, draw_sample, packed_batch, packed_inputs, padded_inputs, rows_of  # isort: skip
import torch.distributed as dist  # isort: skip

from loongforge.data.batch import IGNORE  # isort: skip
from loongforge.parallel.groups import make_groups  # isort: skip
from loongforge.parallel.layout import Layout  # isort: skip
from loongforge.parallel.session import joined_world  # isort: skip

IMAGE_TOKENS, LONGEST, ROW = 64, 256, 512


def sample(draw: np.random.Generator, vocab_size: int, image_size: int) -> Sample:
    """One image; lognormal text."""
    text = min(LONGEST - IMAGE_TOKENS, max(16, int(draw.lognormal(np.log(64), 0.7))))
    sizes = dict(image_tokens=IMAGE_TOKENS, image_size=image_size, vocab_size=vocab_size)
    return draw_sample(draw, text=text, images=1, **sizes)


class Theirs(Plain):
    """The plain loop, padded or in rows of 512; data parallel where there are two processes."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        last = config.model.vision.num_layers - 1
        for name, param in self.model.named_parameters():
            if "vision" in name and (f"layers.{last}." in name or "post_layernorm" in name):
                param.requires_grad_(False)  # the features do not depend on it, which DDP refuses
        self.run = torch.nn.parallel.DistributedDataParallel(self.model) if dist.get_world_size() > 1 else self.model

    def learn(self, inputs: dict[str, torch.Tensor]) -> None:
        """A step."""
        labels = inputs.pop("labels").roll(-1, 1)  # the last of a row, which begins it again, is no target
        self.optimizer.zero_grad()
        logits = self.run(**inputs).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


def packed(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Rows of 512."""
    return packed_inputs(rows_of(samples, ROW), ROW)


def timed(step: Callable[[list[Sample]], None], steps: Sequence[list[Sample]]) -> float:
    """Seconds of all steps but the first."""
    step(steps[0])
    began = time.perf_counter()
    for samples in steps[1:]:
        step(samples)
    return time.perf_counter() - began


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Samples per second of each, medians over blocks, on rank 0's clock."""
    sizes = SIZES["small"]
    config = make_config(sizes)
    vision: Any = config.model.vision
    rank, world = dist.get_rank(), dist.get_world_size()
    draw = np.random.default_rng(rank)
    share = args.samples // world
    steps = [
        [sample(draw, sizes["llm"]["vocab_size"], vision.image_size) for _ in range(share)] for _ in range(args.steps)
    ]
    ours = Ours(config, make_groups(Layout.from_model(config.model, world), BACKEND.dist_backend))
    loops = {name: Theirs(config) for name in ("padded", "packed")}
    collates: dict[str, Collate] = {"padded": padded_inputs, "packed": packed}
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: timed(lambda samples: ours.step(packed_batch(samples)), steps),
        **{
            f"loop, {name}": partial(
                timed, lambda samples, name=name: loops[name].learn(collates[name](samples)), steps
            )
            for name in collates
        },
        **{f"Trainer, {name}": TrainerSide(Theirs(config).model, steps, collates[name]).block for name in collates},
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(args.blocks + 1):
        for name, seconds in sides.items():
            if world > 1:
                dist.barrier()
            taken = seconds()
            if block:  # the first warms up
                times[name].append(taken)
    timed_steps = args.steps - 1
    rates = {name: args.samples * timed_steps / statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(theirs / mine for mine, theirs in zip(times["ours"], times[name], strict=True))
        for name in sides
        if name != "ours"
    }
    tokens = sum(len(sample) for samples in steps for sample in samples) / (args.steps * share)
    return {
        "nproc": world,
        "threads": args.threads,
        "mean_tokens": round(tokens),
        "samples_per_s": rates,
        "ratio": ratios,
    }


def main() -> None:
    """Measures in one or several processes, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=4, help="of all processes together")
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=5, help="of a block; the first is not timed")
    parser.add_argument("--samples", type=int, default=16, help="of a step")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.processes > 1 and "RANK" not in os.environ:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(args.processes)]
        sys.exit(subprocess.run([*torchrun, __file__, *sys.argv[1:]]).returncode)
    torch.set_num_threads(max(1, args.threads // args.processes))
    with joined_world(BACKEND) as world:
        result = measure(args)
        if world.rank == 0 and args.json:
            print(json.dumps(result))
        elif world.rank == 0:
            for name, rate in result["samples_per_s"].items():
                ratio = "" if name == "ours" else f"   ours is {result['ratio'][name]:.2f} times as fast"
                print(f"{name:<17}{rate:7.1f} samples/s{ratio}")


if __name__ == "__main__":
    main()
