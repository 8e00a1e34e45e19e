"""`loongforge backends` for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_BYTES = 2**30


def text(found: Sequence[dict[str, Any]]) -> str:
    """Usable backends at length, others with what speaks against them."""
    return "\n".join(line for one in found for line in _lines(one))


def _lines(one: dict[str, Any]) -> Iterator[str]:
    chosen = "   <- backend=auto" if one["auto"] else ""
    if one["emulated"]:
        yield f"EMULATED {one['title'].upper()}: contract check only, nothing here ran on its hardware"
    yield f"{one['name']}: {one['title']}, {_state(one)}{chosen}"
    yield _row("evidence", "; ".join(one["evidence"]) or "none")
    for problem in one["problems"]:
        yield _row("problem", f"{problem['text']} -> {problem['fix']}")
    if not one["available"]:
        return
    yield _row("versions", ", ".join(f"{name} {version}" for name, version in one["versions"].items()))
    yield _row("device", f"torch calls it {one['torch_device']}; collectives {one['collectives']}")
    yield _row("memory", ", ".join(f"{name} {size / _BYTES:.1f} GiB" for name, size in one["memory"].items()))
    for value in ("yes", "no", "unknown"):
        names = [name for name, support in one["capabilities"].items() if support["value"] == value]
        yield _row(f"can: {value}", ", ".join(names) or "-")
    yield _row("verified", one["verified"] or "not on this machine: loongforge backends verify")
    yield from _kernels(one["kernels"])


def _state(one: dict[str, Any]) -> str:
    if one["available"]:
        return f"{one['devices']} process(es) by default"
    return {"absent": "not here", "no_device": "no device"}.get(one["state"], f"cannot be used ({one['state']})")


def _row(name: str, value: str) -> str:
    return f"  {name:<13}{value}"


def _kernels(kernels: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"  {'op':<22}{'chosen':<26}{'evidence':<11}rejected"
    for kernel in kernels:
        rejected = "; ".join(f"{other['implementation']}: {other['reason']}" for other in kernel["rejected"]) or "-"
        chosen = kernel["implementation"] + (f" or {kernel['otherwise']}" if kernel["otherwise"] else "")
        yield f"  {kernel['op']:<22}{chosen:<26}{kernel['evidence']:<11}{rejected}"
