"""What is compared of two runs' folders."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.training.recipes import samples_of

TOLERANCE = 2e-5


@dataclass(frozen=True)
class Kind:
    """What the lines of one kind in metrics.jsonl have to agree in."""

    loss: str
    """Within the tolerance, in nats."""
    exact: tuple[str, ...]
    norms: tuple[str, ...] = ()
    """Within the tolerance, relative."""


KINDS = [
    Kind(
        "loss",
        ("step", "lr", "loss_tokens", "tokens", "samples", "images", "skipped"),
        ("grad_norm", "grad_norm/vision", "grad_norm/projector", "grad_norm/llm"),
    ),
    Kind("eval/loss", ("step", "eval/exact_match", "eval/samples")),
]


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl that have a field."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in line]


def sample_ids(run_dir: Path) -> dict[int, list[str]]:
    """Ids of every step's samples."""
    found: dict[int, list[str]] = defaultdict(list)
    for line in samples_of(run_dir):
        found[line["step"]] += line["ids"]
    return {step: sorted(ids) for step, ids in found.items()}


def assert_same(run_dir: Path, reference: Path, first: int = 1) -> None:
    """All steps, their samples, and evaluations from step `first` on."""
    for kind in KINDS:
        expected = [record for record in records(reference, kind.loss) if record["step"] >= first]
        for one, other in zip(records(run_dir, kind.loss), expected, strict=True):
            assert {key: one[key] for key in kind.exact} == {key: other[key] for key in kind.exact}
            assert one[kind.loss] == pytest.approx(other[kind.loss], abs=TOLERANCE)
            for norm in kind.norms:
                assert one[norm] == pytest.approx(other[norm], rel=TOLERANCE)
    assert sample_ids(run_dir) == {step: ids for step, ids in sample_ids(reference).items() if step >= first}
