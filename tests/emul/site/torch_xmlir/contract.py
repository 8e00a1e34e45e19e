"""The rules of contract.yaml, and how one is enforced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

_FILE = Path(__file__).parents[2] / "contract.yaml"
TABLE: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
RULES: dict[str, dict[str, str]] = {row["id"]: row for row in TABLE["rules"]}


class ContractViolation(Exception):  # noqa: N818 - reads as the event that it is
    """A call that the cited sources do not allow."""

    def __init__(self, rule: str) -> None:
        row = RULES[rule]  # no rule without a source
        super().__init__(f"{rule}: {row['rule']} [{row['source']}; confidence {row['confidence']}]")
        self.rule = rule


def require(rule: str, holds: bool) -> None:
    """Raises unless a rule of the table holds."""
    if rule not in RULES:
        raise KeyError(f"{rule} is not in {_FILE.name}: no rule without a source")
    if not holds:
        raise ContractViolation(rule)


def everywhere(*tensors: torch.Tensor) -> None:
    """What holds for every kernel."""
    require("dtypes.no_fp64", all(x.dtype != torch.float64 for x in tensors))
    require("dtensor.local", all(not hasattr(x, "to_local") for x in tensors))
