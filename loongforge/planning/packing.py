"""From a recipe to a rank's part of its data, and to the rules of packed steps."""

from __future__ import annotations

from loongforge.config.schema import Config
from loongforge.data.arrange import Rules
from loongforge.data.part import Part
from loongforge.model.checks import micro_batch_size, micro_batch_tokens, window_size
from loongforge.parallel.layout import Layout
from loongforge.planning.sample_costs import cost_model


def data_part(config: Config, layout: Layout, rank: int) -> Part:
    """A rank's part of the data."""
    rows = 1 if config.packing.enabled else micro_batch_size(config, layout)
    return Part(layout, rank, lambda number: window_size(layout, config.trainer.encode_window, number, rows))


def packing_rules(config: Config, layout: Layout) -> Rules | None:
    """How samples are packed; None: they are padded."""
    if not config.packing.enabled:
        return None
    return Rules(
        replicas=layout.dp,
        encoders=layout.vision.dp if layout.vision is not None else 0,
        token_budget=micro_batch_tokens(config, layout),
        mode=config.balance.mode,
        objective=_objective(config, layout),
        cost=cost_model(config),
        patch_cap=config.balance.patch_cap,
    )


def _objective(config: Config, layout: Layout) -> str:
    if config.balance.objective != "auto":
        return config.balance.objective
    if layout.llm.pp > 1:
        return "pipeline"
    return "lock_step" if config.balance.mode == "full" else "one_barrier"
