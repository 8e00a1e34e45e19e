"""`loongforge plan --balance`: what packing and balancing would do with the recipe's own samples."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data.arrange import Load
from loongforge.parallel.layout import Layout

_STEPS = 8


def plan_balance(config: Config, layout: Layout, *, as_json: bool) -> int:
    """Reads the metadata of the first steps and prints what each mode makes of them; returns the exit code."""
    from loongforge.planning.balance_gain import gains

    packed = replace(config, packing=replace(config.packing, enabled=True))
    found = gains(packed, layout, _loads(packed))
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


def _loads(config: Config) -> list[list[Load]]:
    """Samples of the first steps; bad ones are left out."""
    from loongforge.cli.data_recipe import recipe_processor
    from loongforge.data.metadata import MetadataTable
    from loongforge.data.order import SampleOrder
    from loongforge.data.sources import open_sources

    processor, data = recipe_processor(config), config.data
    opened = open_sources(data.train, "data.train", data.image_dir, data.index_dir)
    sources = [source for source, _ in opened]
    order = SampleOrder(
        [len(source) for source in sources],
        [weight for _, weight in opened],
        seed=config.trainer.seed,
        shuffle=data.shuffle,
    )
    table, size = MetadataTable(sources, processor, index_dir=data.index_dir), config.trainer.global_batch_size
    steps = []
    for step in range(_STEPS):
        metas = [table.get(*order.at(position)) for position in range(step * size, (step + 1) * size)]
        good = [meta for meta in metas if meta.problem is None]
        steps.append([Load(meta.text_tokens, tuple(processor.units(meta.image_sizes))) for meta in good])
    if not any(steps):
        raise UserError("data.train: no good sample in the first steps; see `loongforge data check`")
    return [step for step in steps if step]
