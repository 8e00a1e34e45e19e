"""Output layer and loss at a large vocabulary: peak memory and time, plain and ours, each in new processes.

    python scripts/bench/cross_entropy.py [--tokens 1024] [--hidden 128] [--vocabulary 150000] [--ranks 1] [--json]

Ranks divide the vocabulary evenly, rounded up to full rows; `--padding` adds rows of no token. Peak memory is the
highest resident set of a process during one forward and backward pass, less what it held before; of several ranks,
the highest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from loongforge.kernels import linear_cross_entropy, reference
from loongforge.kernels.backend import select

WAYS = {"plain": reference.linear_cross_entropy, "ours": linear_cross_entropy.linear_cross_entropy}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class Problem:
    """Sizes of a pass."""

    tokens: int
    hidden: int
    vocabulary: int
    ranks: int
    padding: int

    @property
    def rows(self) -> int:
        """Of the weight on each rank."""
        return -(-(self.vocabulary + self.padding) // self.ranks)


def _pass(way: str, problem: Problem, rank: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(problem.tokens, problem.hidden, generator=generator).requires_grad_()
    whole = torch.randn(problem.rows * problem.ranks, problem.hidden, generator=generator) * problem.hidden**-0.5
    weight = whole.chunk(problem.ranks)[rank].clone().requires_grad_()
    targets = torch.randint(problem.vocabulary, (problem.tokens,), generator=generator)
    group = dist.group.WORLD if problem.ranks > 1 else None
    before, began = _peak(), time.perf_counter()
    loss = WAYS[way](rows, weight, targets, group, vocab_size=problem.vocabulary).mean()
    loss.backward()
    seconds, peak = time.perf_counter() - began, _peak()
    assert rows.grad is not None
    assert weight.grad is not None
    return {
        "loss": loss.item(),
        "peak_bytes": peak - before,
        "process_peak_bytes": peak,
        "seconds": seconds,
        "grads": (rows.grad.numpy(), weight.grad[:: max(1, problem.rows // 1000)].numpy()),
    }


def _send(pipe: Connection, way: str, problem: Problem, rank: int, store: str) -> None:
    torch.set_num_threads(1)
    if problem.ranks > 1:
        backend = select("cpu").dist_backend
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=problem.ranks)
    _pass(way, replace(problem, tokens=2, vocabulary=1000), rank)  # loads the libraries
    pipe.send(_pass(way, problem, rank))


def _of_all_ranks(way: str, problem: Problem) -> dict[str, Any]:
    """The highest figure of any rank; gradients of each."""
    pipes, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(problem.ranks):
            ours, theirs = multiprocessing.Pipe()
            arguments = (theirs, way, problem, rank, f"{folder}/store")
            processes.append(multiprocessing.get_context("spawn").Process(target=_send, args=arguments))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        found = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
    grads = [grad for one in found for grad in one.pop("grads")]
    return {**{name: max(one[name] for one in found) for name in found[0]}, "grads": grads}


def measure(problem: Problem) -> dict[str, Any]:
    """Both ways, compared."""
    found = {way: _of_all_ranks(way, problem) for way in WAYS}
    plain, mine = found["plain"], found["ours"]
    grads = [float(abs(a - b).max() / abs(a).max()) for a, b in zip(plain.pop("grads"), mine.pop("grads"), strict=True)]
    return {
        **asdict(problem),
        **{f"{way}_{name}": value for way, values in found.items() for name, value in values.items()},
        "memory_ratio": plain["peak_bytes"] / mine["peak_bytes"],
        "process_memory_ratio": plain["process_peak_bytes"] / mine["process_peak_bytes"],
        "loss_difference": abs(plain["loss"] - mine["loss"]),
        "gradient_difference": max(grads),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--ranks", type=int, default=1, help="that divide the vocabulary")
    parser.add_argument("--padding", type=int, default=0, help="rows of no token, at least")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(Problem(args.tokens, args.hidden, args.vocabulary, args.ranks, args.padding))
    print(json.dumps(result) if args.json else "\n".join(f"{key:24} {value:,.6g}" for key, value in result.items()))


if __name__ == "__main__":
    main()
