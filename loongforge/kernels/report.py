"""What there is to say about a backend on this machine, as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from loongforge.kernels.backend import CAPABILITIES, Backend

SCHEMA = 1


def describe(backend: Backend, *, auto: bool) -> dict[str, Any]:
    """For `loongforge backends --json`.

    Args:
        backend: Any installed one.
        auto: It is what `backend=auto` takes.
    """
    found = backend.detect()
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "name": backend.name,
        "title": backend.title,
        "available": found.usable,
        "state": found.state,
        "emulated": found.state == "emulated",
        "auto": auto,
        "devices": backend.device_count() if found.usable else 0,
        "torch_device": backend.torch_device_type,
        "collectives": backend.dist_backend,
        "evidence": list(found.evidence),
        "problems": [asdict(problem) for problem in found.problems],
        "capabilities": {name: asdict(backend.capability(name)) for name in CAPABILITIES},
    }
    if found.usable:
        from loongforge.kernels.registry import choose
        from loongforge.kernels.verified import measured

        known = measured(backend)
        told["versions"] = dict(backend.versions())
        told["memory"] = dict(backend.memory())
        told["verified"] = max(known.values()) if known else None
        told["kernels"] = choose(backend).describe(known)
    return told


def doubts(told: dict[str, Any]) -> Iterator[str]:
    """Everything that `--strict` does not let pass."""
    if not told["available"]:
        yield f"{told['name']} is not available ({told['state']})"
    if told["emulated"]:
        yield f"{told['name']} is emulated: nothing is proven of its hardware"
    for problem in told["problems"]:
        yield f"{problem['text']}: {problem['fix']}"
    for name, support in told["capabilities"].items():
        if support["value"] == "unknown":
            yield f"capability {name} is unknown ({support['source']})"
    for kernel in told.get("kernels", ()):
        if kernel["evidence"] == "contract":
            yield f"{kernel['op']}: {kernel['implementation']} is not measured (loongforge backends verify)"
