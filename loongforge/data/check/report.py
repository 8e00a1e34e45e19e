"""A finished check, for machines and for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loongforge.data.check.kinds import ERRORS, WARNINGS
from loongforge.data.check.outlook import Packed, histogram
from loongforge.data.check.run import Checked, CheckedSet, Problem
from loongforge.data.visible import visible

_BAR = 40
_LONGEST = 400  # characters of a reason


@dataclass(frozen=True)
class Outlook:
    """What the training data means for a run."""

    padded_share: float | None
    """Part of all tokens that is padding under the recipe's batch sizes; None: no recipe, or no sample."""
    packed: Packed | None
    """What packing all samples would reach."""


@dataclass(frozen=True)
class Pace:
    """How fast it went."""

    seconds: float
    workers: int


def as_json(checked: Checked, outlook: Outlook, pace: Pace) -> dict[str, Any]:
    """Everything, as plain values."""
    read = sum(len(one.places) for one in checked.sets)
    return {
        "ok": not checked.of(ERRORS),
        "sets": {one.name: _set(one) for one in checked.sets},
        "problems": _problems(checked.of(ERRORS), ERRORS),
        "warnings": _problems(checked.of(WARNINGS), WARNINGS),
        "padded_share": outlook.padded_share,
        "packing": asdict(outlook.packed) if outlook.packed else None,
        "seconds": pace.seconds,
        "workers": pace.workers,
        "samples_per_minute": read / pace.seconds * 60,
    }


def _set(one: CheckedSet) -> dict[str, Any]:
    lengths = one.lengths
    images = one.facts.images[one.facts.tokens > 0]
    counts = {str(n): int(count) for n, count in zip(*np.unique(images, return_counts=True), strict=True)}
    return {
        "samples": one.total,
        "checked": len(one.places),
        "good": len(lengths),
        "tokens": _numbers(lengths),
        "lengths": [{"from": low, "to": high, "samples": count} for low, high, count in histogram(lengths)],
        "images_per_sample": counts,
    }


def _numbers(lengths: np.ndarray) -> dict[str, float] | None:
    if not len(lengths):
        return None
    middle, high = np.percentile(lengths, [50, 99]).tolist()
    return {
        "mean": float(lengths.mean()),
        "median": middle,
        "p99": high,
        "least": int(lengths.min()),
        "most": int(lengths.max()),
    }


def _problems(problems: dict[str, Problem], meanings: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {"problem": kind, "meaning": meanings[kind], "count": problem.count, "examples": _examples(problem)}
        for kind, problem in problems.items()
    ]


def _examples(problem: Problem) -> list[dict[str, str]]:
    return [
        {
            "set": name,
            "source": found.location.source,
            "shard": found.location.shard,
            "key": found.location.key,
            "id": found.id,
            "reason": found.reason,
        }
        for name, found in problem.examples
    ]


def as_text(report: dict[str, Any]) -> str:
    """The result of `as_json`, in lines."""
    lines: list[str] = []
    for name, one in report["sets"].items():
        lines += _set_lines(name, one)
    lines += _outlook_lines(report)
    for title in ("problems", "warnings"):
        lines += _problem_lines(title, report[title])
    return "\n".join([*lines, *_last_lines(report)])


def _set_lines(name: str, one: dict[str, Any]) -> list[str]:
    lines = [f"{name}: {one['checked']} of {one['samples']} samples read, {one['good']} can be trained on"]
    numbers = one["tokens"]
    if numbers is None:
        return lines
    lines.append(
        f"  tokens of a sample: {numbers['least']} to {numbers['most']}, mean {numbers['mean']:.1f}, "
        f"median {numbers['median']:g}, 99 % below {numbers['p99']:g}"
    )
    most = max(bar["samples"] for bar in one["lengths"])
    for bar in one["lengths"]:
        length = f"{bar['from']}" if bar["from"] == bar["to"] else f"{bar['from']} to {bar['to']}"
        marks = "█" * -(-bar["samples"] * _BAR // most)
        lines.append(f"  {length:>16} {bar['samples']:>9} {marks}")
    shares = (f"{n}: {count}" for n, count in one["images_per_sample"].items())
    lines.append(f"  samples by number of images: {', '.join(shares)}")
    return lines


def _outlook_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    if report["padded_share"] is not None:
        lines.append(f"padding: {report['padded_share']:.1%} of all tokens, under the recipe's batch sizes")
    if report["packing"] is not None:
        packed = report["packing"]
        lines.append(
            f"packing: {packed['packs']} packs of at most {packed['budget']} tokens would be {packed['fill']:.1%} full"
            + (f"; {packed['too_long']} samples are longer than a pack" if packed["too_long"] else "")
        )
    return lines


def _problem_lines(title: str, problems: list[dict[str, Any]]) -> list[str]:
    lines = [f"{title}: {sum(one['count'] for one in problems)}"] if problems else []
    for one in problems:
        lines.append(f"  {one['problem']} ({one['meaning']}): {one['count']}")
        for example in one["examples"]:
            name = f" (id '{example['id']}')" if example["id"] not in ("", example["key"]) else ""
            where = f"{example['set']}: {example['key']} of {example['shard']}{name}"
            lines.append(f"    {visible(where)}: {visible(example['reason'][:_LONGEST])}")
        if one["count"] > len(one["examples"]):
            lines.append(f"    ... and {one['count'] - len(one['examples'])} more")
    return lines


def _last_lines(report: dict[str, Any]) -> list[str]:
    read, pace = sum(one["checked"] for one in report["sets"].values()), report["samples_per_minute"]
    result = "no problems" if report["ok"] else "there are problems"
    return [
        f"{result}; {read} samples in {report['seconds']:.1f} s, {pace:,.0f} a minute, {report['workers']} processes"
    ]
