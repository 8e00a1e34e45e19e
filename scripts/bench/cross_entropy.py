"""Output layer and loss at a large vocabulary: peak memory and time, plain and ours, each in a new process.

    python scripts/bench/cross_entropy.py [--tokens 1024] [--hidden 128] [--vocabulary 150000] [--json]

Peak memory is the process's highest resident set during one forward and backward pass, less what it held before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any

import torch

from loongforge.kernels import linear_cross_entropy, reference

WAYS = {"plain": reference.linear_cross_entropy, "ours": linear_cross_entropy.linear_cross_entropy}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _pass(way: str, tokens: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, generator=generator) * hidden**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    before, began = _peak(), time.perf_counter()
    loss = WAYS[way](rows, weight, targets).mean()
    loss.backward()
    seconds, peak = time.perf_counter() - began, _peak()
    assert rows.grad is not None
    assert weight.grad is not None
    return {
        "loss": loss.item(),
        "peak_bytes": peak - before,
        "process_peak_bytes": peak,
        "seconds": seconds,
        "grads": (rows.grad.numpy(), weight.grad[:: max(1, vocabulary // 1000)].numpy()),
    }


def _send(pipe: Connection, *arguments: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(_pass(*arguments))


def measure(tokens: int, hidden: int, vocabulary: int) -> dict[str, Any]:
    """Both ways, compared."""
    found = {}
    for way in WAYS:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_send, args=(theirs, way, tokens, hidden, vocabulary)
        )
        process.start()
        theirs.close()
        found[way] = ours.recv()
        process.join()
    plain, mine = found["plain"], found["ours"]
    grads = [float(abs(a - b).max() / abs(a).max()) for a, b in zip(plain.pop("grads"), mine.pop("grads"), strict=True)]
    return {
        "tokens": tokens,
        "hidden": hidden,
        "vocabulary": vocabulary,
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
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args.tokens, args.hidden, args.vocabulary)
    print(json.dumps(result) if args.json else "\n".join(f"{key:24} {value:,.6g}" for key, value in result.items()))


if __name__ == "__main__":
    main()
