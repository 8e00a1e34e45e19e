"""Our plans and packs beside simple ones, on eight kinds of global batches.

Prints step time over its lower bound (simulated with a cost model: no communication, no kernels) as geometric means
over the kinds, the fullest cell over the cap, and milliseconds of planning; with --large the time for large batches,
with --packs the fill of packs. Times are the processor's, which a busy machine lengthens less than those of the clock.

    python scripts/bench/planner.py [--ranks 8 64 512] [--cap 1.2] [--seeds 1] [--kinds text omni]
        [--large] [--packs] [--json]
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # the kinds of batches are those of the tests

from loongforge.data.balance import BatchMetadata, CostModel, Plan, lower_bound, pack, plan, step_time
from tests.data.balance.kinds import KINDS, fixed_batch, packed_batch

OBJECTIVES = ("one_barrier", "lock_step", "pipeline")
STEPS = 4


def longest_first(costs: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each: from the heaviest on to the bin with the least."""
    out, heap = np.empty(len(costs), np.int64), [(0.0, bin_) for bin_ in range(bins)]
    for sample in np.argsort(-costs, kind="stable").tolist():
        load, bin_ = heap[0]
        out[sample] = bin_
        heapq.heapreplace(heap, (load + float(costs[sample]), bin_))
    return out


def karmarkar_karp(costs: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each, as many in all bins (but one): the two most uneven partitions are joined, heavy to light."""
    order = np.argsort(-costs, kind="stable")
    order = np.concatenate([order, np.full(-len(order) % bins, -1)]).reshape(-1, bins)
    padded = np.append(costs, 0.0)
    heap = []
    for number, samples in enumerate(order):
        heap.append((-float(padded[samples].max() - padded[samples].min()), number, padded[samples], samples[:, None]))
    heapq.heapify(heap)
    while len(heap) > 1:
        _, number, sums, members = heapq.heappop(heap)
        _, _, others, more = heapq.heappop(heap)
        falling, rising = np.argsort(-sums, kind="stable"), np.argsort(others, kind="stable")
        joined = sums[falling] + others[rising]
        samples = np.concatenate([members[falling], more[rising]], axis=1)
        heapq.heappush(heap, (-float(joined.max() - joined.min()), number, joined, samples))
    members = heap[0][3]
    out = np.empty(len(costs) + 1, np.int64)
    out[members] = np.arange(bins)[:, None]
    return out[:-1]


def combined(batch: BatchMetadata, cost: CostModel) -> np.ndarray:
    """What each sample costs in encoder and language model."""
    images = np.bincount(
        batch.sample_of_image(), weights=cost.units(batch.patches_per_unit) * batch.image_units, minlength=len(batch)
    )
    return cost.documents(batch.tokens()) + images


Baseline = Callable[[BatchMetadata, np.ndarray, CostModel, int], np.ndarray]
BASELINES: dict[str, Baseline] = {
    "none: packs as they come": lambda batch, packs, cost, cells: packs,
    "tokens, longest first": lambda batch, packs, cost, cells: longest_first(batch.tokens(), cells),
    "tokens, Karmarkar-Karp, equal counts": lambda batch, packs, cost, cells: karmarkar_karp(batch.tokens(), cells),
    "true cost, longest first": lambda batch, packs, cost, cells: longest_first(combined(batch, cost), cells),
}


def timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float]:
    """What it returns, and milliseconds of one core."""
    start = time.process_time()
    result = function(*arguments, **options)
    return result, (time.process_time() - start) * 1e3


Outcome = tuple[float, float, float, float, float]
"""over the bound for each objective, fullest cell over the cap, milliseconds"""


def outcomes(kind: str, ranks: int, cap: float, seed: int) -> dict[str, Outcome]:
    """Of every way of planning one batch; ours plans anew for each objective."""
    batch, packs = packed_batch(kind, ranks, STEPS, seed)
    cost, token_cap = KINDS[kind].cost, int(cap * KINDS[kind].budget)
    shape = {"ranks": ranks, "micro_batches": STEPS, "cost": cost}
    plans: dict[str, tuple[list[Plan], float]] = {}
    for name, baseline in BASELINES.items():
        cell, ms = timed(baseline, batch, packs, cost, ranks * STEPS)
        plans[name] = ([Plan(cell % ranks, cell // ranks, None)] * 3, ms)
    ours = [timed(plan, batch, **shape, objective=objective, token_cap=token_cap) for objective in OBJECTIVES]
    plans["ours"] = ([made for made, _ in ours], ours[1][1])
    bounds = [lower_bound(batch, **shape, objective=o, units_free=o == "one_barrier") for o in OBJECTIVES]
    found = {}
    for name, (made, ms) in plans.items():
        times = [step_time(p, batch, **shape, objective=o) for p, o in zip(made, OBJECTIVES, strict=True)]
        held = max(np.bincount(p.rank * STEPS + p.micro_batch, weights=batch.tokens()).max() for p in made)
        ratios = [time_ / bound for time_, bound in zip(times, bounds, strict=True)]
        found[name] = (ratios[0], ratios[1], ratios[2], float(held) / token_cap, ms)
    return found


def compare(kinds: list[str], ranks: int, cap: float, seeds: list[int]) -> list[dict[str, Any]]:
    """A row for each way of planning: geometric means over kinds and seeds."""
    found = [outcomes(kind, ranks, cap, seed) for kind in kinds for seed in seeds]
    rows = []
    for name in found[0]:
        values = np.array([of[name] for of in found])
        ratios = np.exp(np.log(values[:, :3]).mean(axis=0)).tolist()
        row = dict(zip(OBJECTIVES, ratios, strict=True))
        fullest, ms = float(values[:, 3].max()), float(values[:, 4].mean())
        rows.append({"ranks": ranks, "plan": name, **row, "fullest_cell": fullest, "plan_ms": ms})
    return rows


def large(kinds: list[str]) -> list[dict[str, Any]]:
    """Milliseconds for 65536 and 10**6 samples on 4096 ranks; the samples of a smaller batch, drawn anew."""
    rows = []
    for kind in kinds:
        small = fixed_batch(kind, 4096, 4, seed=1)
        for samples in (65_536, 1_000_000):
            batch = drawn(small, samples)
            cap = max(int(1.2 * batch.tokens().sum() / 4096 / STEPS), int(batch.tokens().max()))
            row: dict[str, Any] = {"kind": kind, "samples": samples, "units": int(batch.image_units.sum())}
            for objective in ("one_barrier", "lock_step"):
                runs = [timed(plan, batch, 4096, STEPS, KINDS[kind].cost, objective, cap) for _ in range(3)]
                row[f"{objective}_ms"] = sorted(ms for _, ms in runs)[1]
            rows.append(row)
    return rows


def drawn(batch: BatchMetadata, samples: int) -> BatchMetadata:
    """So many samples of a batch, with repetition."""
    chosen = np.random.default_rng(1).integers(0, len(batch), samples)
    counts = np.diff(batch.image_offsets)[chosen]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    image = np.repeat(batch.image_offsets[:-1][chosen] - offsets[:-1], counts) + np.arange(offsets[-1])
    of_images = (batch.image_units[image], batch.patches_per_unit[image], batch.image_tokens[image])
    return BatchMetadata(batch.text_tokens[chosen], offsets, *of_images)


def packs(kinds: list[str]) -> list[dict[str, Any]]:
    """Fill of packs of 20000 samples, beside packs as samples come; seconds for 10**6 lengths."""
    rows = []
    for kind in kinds:
        budget, tokens = KINDS[kind].budget, fixed_batch(kind, 20_000, 1, seed=3).tokens()
        tokens = tokens[tokens <= budget]
        many = np.random.default_rng(1).choice(tokens, 1_000_000)
        _, ms = timed(pack, many, budget)
        rows.append(
            {
                "kind": kind,
                "budget": budget,
                "next_fit": fill(next_fit(tokens, budget), tokens, budget),
                "ours": fill(pack(tokens, budget), tokens, budget),
                "seconds_per_million": ms / 1e3,
            }
        )
    return rows


def next_fit(tokens: np.ndarray, budget: int) -> np.ndarray:
    """Pack of each: the current one, or a new one."""
    out, number, room = np.empty(len(tokens), np.int64), 0, budget
    for sample, length in enumerate(tokens.tolist()):
        if length > room:
            number, room = number + 1, budget
        out[sample], room = number, room - length
    return out


def fill(numbers: np.ndarray, tokens: np.ndarray, budget: int) -> float:
    """Share of the packs that holds tokens."""
    return float(tokens.sum() / (numbers.max() + 1) / budget)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table in Markdown."""
    print(f"\n{title}\n\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{v:.5g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 64, 512])
    parser.add_argument("--cap", type=float, default=1.2, help="tokens of a cell over the budget that samples come in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--large", action="store_true", help="time 65536 and 10**6 samples on 4096 ranks")
    parser.add_argument("--packs", action="store_true", help="the packer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tables = {
        "plans": [row for ranks in options.ranks for row in compare(options.kinds, ranks, options.cap, options.seeds)]
    }
    tables["large"] = large(options.kinds) if options.large else []
    tables["packs"] = packs(options.kinds) if options.packs else []
    if options.json:
        print(json.dumps(tables))
        return
    for title, rows in tables.items():
        if rows:
            show(title, rows)


if __name__ == "__main__":
    main()
