"""From a recipe to the rules of its packed steps."""

from __future__ import annotations

from loongforge.components.llm.base import LLMConfig
from loongforge.components.vision.base import VisionConfig
from loongforge.config.schema import Config
from loongforge.data.arrange import Rules
from loongforge.data.packed import Packing
from loongforge.model.checks import micro_batch_tokens, window_size
from loongforge.model.flops import image_tokens
from loongforge.parallel.layout import Layout
from loongforge.planning.sample_costs import cost_model


def packing(config: Config, layout: Layout, rank: int) -> Packing:
    """How a rank takes part in packed steps."""
    vision, llm = config.model.vision, config.model.llm
    assert isinstance(llm, LLMConfig)
    rules = Rules(
        replicas=layout.dp,
        encoders=layout.vision.dp if layout.vision is not None else 0,
        token_budget=micro_batch_tokens(config, layout),
        image_tokens=image_tokens(config.model),
        patches=vision.num_patches if isinstance(vision, VisionConfig) else 1,
        mode=config.balance.mode,
        objective=_objective(config, layout),
        cost=cost_model(config),
        patch_cap=config.balance.patch_cap,
    )
    return Packing(rules, layout, rank, lambda number: window_size(layout, config.trainer.encode_window, number, 1))


def _objective(config: Config, layout: Layout) -> str:
    if config.balance.objective != "auto":
        return config.balance.objective
    if layout.llm.pp > 1:
        return "pipeline"
    return "lock_step" if config.balance.mode == "full" else "one_barrier"
