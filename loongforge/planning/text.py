"""A plan as lines to read."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from loongforge.parallel.grid import AXES, ranks_text

EVERY_RANK = 16
"""Up to so many ranks each has a line of its own; of more, those that hold alike share one."""
_GIB = 2**30


def plan_text(plan: dict[str, Any]) -> str:
    """The whole plan."""
    step = plan["step"]
    parts = [
        f"{plan['recipe']} on {plan['processes']} process(es) of {plan['device']['name']}",
        *_components(plan),
        "",
        _sample(plan),
        "",
        *_ranks(plan),
        "",
        f"predicted step: {_time(step['seconds'])}, {step['samples_per_s']:.3g} samples/s, MFU {step['mfu']:.0%}, "
        f"pipeline bubble {step['bubble']:.0%}",
        *(f"  {name:<18}{_time(value):>10}{value / step['seconds']:>7.0%}" for name, value in _parts(step["times"])),
        *_balance(plan),
        *_verdict(plan),
    ]
    return "\n".join(parts)


def search_text(found: list[dict[str, Any]], shown: int) -> str:
    """The first layouts of a search."""
    lines = [f"{'step':>9}{'MFU':>6}{'bubble':>8}{'memory':>11}  layout"]
    for one in found[:shown]:
        fits = "" if one["fits"] else "  DOES NOT FIT"
        lines.append(
            f"{_time(one['seconds']):>9}{one['mfu']:>6.0%}{one['bubble']:>8.0%}{one['bytes'] / _GIB:>7.1f} GiB  "
            f"{' '.join(one['overrides']) or 'as in the recipe'}{fits}"
        )
    fitting = sum(one["fits"] for one in found)
    return "\n".join([*lines, f"{len(found)} legal layouts, {fitting} of them fit"])


def _sample(plan: dict[str, Any]) -> str:
    load = plan["workload"]
    step = f"{plan['micro_batches']} micro-batch(es) of {plan['micro_batch_size']} on each replica of the LLM"
    if "vision" not in plan["components"]:
        return f"sample: {load['tokens']} tokens; step: {step}"
    images = f"{load['images']:g} image(s) of {load['image_tokens']} tokens"
    window = f"the images of {plan['encode_window']} are encoded at once"
    return f"sample: {load['tokens']} tokens, {images}; step: {step}, {window}"


def _components(plan: dict[str, Any]) -> list[str]:
    lines = [f"{'component':<12}{'type':<18}{'layout':<30}{'parameters':>16}{'trainable':>16}{'FLOPs a step':>14}"]
    for name, size in plan["components"].items():
        counts = f"{size['params']:>16,}{size['trainable_params']:>16,}"
        lines.append(
            f"{name:<12}{size['type']:<18}{size['layout']:<30}{counts}{size['step_flops']:>14.3g}  "
            f"({size['factor']} x multiply-adds)"
        )
    return [*lines, f"{'total':<56}{plan['params']:>16,}{plan['trainable_params']:>16,}"]


def _ranks(plan: dict[str, Any]) -> list[str]:
    columns = ("weights", "gradients", "optimizer", "activations", "memory", "received")
    head = f"{'ranks':<16}{'holds':<58}" + "".join(f"{name:>13}" for name in columns)
    return [head, *(_row(alike, plan["grids"]) for alike in _alike(plan["ranks"]))]


def _alike(ranks: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    if len(ranks) <= EVERY_RANK:
        return [[rank] for rank in ranks]

    def kind(rank: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(rank.get("llm", {}).get("layers", ())), "vision" in rank

    return [list(members) for _, members in groupby(ranks, key=kind)]


def _row(alike: list[dict[str, Any]], grids: dict[str, Any]) -> str:
    first, memory = alike[0], alike[0]["memory"]
    work = memory["activations"] + memory["logits"] + memory["image_rows"]
    figures = (memory["params"], memory["gradients"], memory["optimizer"], work, memory["total"])
    received = first["received"]["total"]
    name = ranks_text([rank["rank"] for rank in alike])
    return f"{name:<16}{_holds(alike, grids):<58}" + "".join(f"{_bytes(size):>13}" for size in (*figures, received))


def _holds(alike: list[dict[str, Any]], grids: dict[str, Any]) -> str:
    found = []
    for name in ("llm", "vision", "projector"):
        places = [rank[name] for rank in alike if name in rank]
        if not places or (name == "projector" and places == [rank.get("vision") for rank in alike]):
            continue
        axes = _shown_axes(grids[name], without=("pp",))
        shown = " ".join(f"{axis}{_span([place[axis] for place in places])}" for axis in axes)
        layers = f" layers {places[0]['layers'][0]}-{places[0]['layers'][1]}" if "layers" in places[0] else ""
        found.append(f"{name}{layers} {shown}")
    return "; ".join(found)


def _shown_axes(grid: dict[str, int], without: tuple[str, ...] = ()) -> list[str]:
    return [axis for axis in AXES if (grid[axis] > 1 or axis in ("tp", "dp")) and axis not in without]


def _span(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def _parts(times: dict[str, float]) -> list[tuple[str, float]]:
    return [(name.replace("_", " "), value) for name, value in times.items() if value]


def _balance(plan: dict[str, Any]) -> list[str]:
    balance = plan.get("balance")
    if balance is None:  # one replica: nothing to balance
        return []
    if "command" in balance:
        return [f"what balance.mode would gain (here at once, if data.train had an index): {balance['command']}"]
    speed = ", ".join(f"{mode} {speed:.2f} times" for mode, speed in balance["speed"].items() if mode != "none")
    return [f"balance.mode, packed, as fast as none in the first {balance['steps']} steps (simulated): {speed}"]


def _verdict(plan: dict[str, Any]) -> list[str]:
    memory = plan["memory"]
    needed, usable = memory["bytes"] / _GIB, memory["usable_bytes"] / _GIB
    verdict = "fits" if memory["fits"] else "DOES NOT FIT"
    lines = [f"memory: {verdict}: rank {memory['fullest_rank']} needs {needed:.1f} GiB of {usable:.1f} usable"]
    assumed = plan["device"]["assumed"]
    if assumed:
        lines.append(f"assumed of the device: {', '.join(assumed)}")
    return lines + [f"  - {line}" for line in plan["advice"]]


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _bytes(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1024:.1f} KiB"
