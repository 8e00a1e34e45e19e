"""What packing and balancing would do with a recipe's own samples: `plan --balance`, and a line of `plan`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from loongforge.cli.data_recipe import first_loads, indexed_loads
from loongforge.config.errors import UserError
from loongforge.config.schema import Config

_STEPS = 8


def plan_balance(config: Config, world: int, *, as_json: bool) -> int:
    """Reads the metadata of the first steps and prints what each mode makes of them; returns the exit code."""
    from loongforge.cli.processes import check_fit
    from loongforge.planning.balance_gain import gains

    packed = _packed(config)
    layout = check_fit(packed, world)
    found = gains(packed, layout, [[load for _, load in step] for step in first_loads(packed, steps=_STEPS)])
    if as_json:
        print(json.dumps({"steps": _STEPS, "modes": {one.mode: asdict(one) for one in found}}))
        return 0
    print(f"the first {_STEPS} steps of {config.name}, packed, on dp={layout.dp}; simulated, without communication")
    print(f"{'balance.mode':<14}{'step':>7}{'micro-batches':>15}{'fill':>7}{'balance/llm':>13}{'balance/vision':>16}")
    for one in found:
        print(
            f"{one.mode:<14}{one.step:>7.2f}{one.micro_batches:>15.1f}{one.fill:>7.0%}"
            f"{one.balance_llm:>13.2f}{one.balance_vision:>16.2f}"
        )
    return 0


def expected_gain(config: Config, world: int) -> dict[str, Any] | None:
    """How many times as fast as `none` each mode makes the first steps, by the index of the data. None where there is
    no index that fits, or the recipe cannot be packed: `plan --balance` reads samples, and says what is wrong."""
    from loongforge.cli.processes import check_fit
    from loongforge.planning.balance_gain import gains

    packed = _packed(config)
    try:
        layout = check_fit(packed, world)
        loads = indexed_loads(packed, steps=_STEPS)
        found = gains(packed, layout, loads) if loads else []
    except (UserError, ValueError):
        return None
    return {"steps": _STEPS, "speed": {one.mode: 1 / one.step for one in found}} if found else None


def _packed(config: Config) -> Config:
    return replace(config, packing=replace(config.packing, enabled=True))
