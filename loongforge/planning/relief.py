"""What would make a step smaller in memory, and by how much: an answer to memory that has run out."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.model.checks import micro_batch_size, micro_batch_tokens, problems
from loongforge.parallel.layout import Layout
from loongforge.planning.leaner import Setting
from loongforge.planning.memory import Memory, memory_on
from loongforge.planning.predict import fullest_candidates
from loongforge.planning.workload import Costs, Workload


@dataclass(frozen=True)
class Relief:
    """A change of the recipe."""

    setting: str
    """As an override."""
    saved: float
    """Bytes on the fullest rank, predicted."""


def relief(
    config: Config, layout: Layout, *, whole_logits: bool = False, bf16: bool = True
) -> tuple[Memory, list[Relief]]:
    """What the fullest rank is predicted to hold, and each single change that saves some of it, the largest first.

    Predicted for samples of the recipe's greatest length.

    Args:
        config: The recipe.
        layout: Of the run; changes keep the number of ranks.
        whole_logits: The loss makes all logits of a micro-batch.
        bf16: The devices can.
    """
    before = _held(config, layout, whole_logits)
    found = []
    for text, changed in _changes(config, layout, whole_logits=whole_logits, bf16=bf16):
        try:
            other = Layout.from_model(changed.model, layout.world_size)
        except UserError:
            continue
        if problems(changed, other):
            continue
        loss = whole_logits and changed.kernels.linear_cross_entropy == config.kernels.linear_cross_entropy
        saved = before.total - _held(changed, other, loss).total
        if saved > 0:
            found.append(Relief(text, saved))
    return before, sorted(found, key=lambda one: -one.saved)


def _held(config: Config, layout: Layout, whole_logits: bool) -> Memory:
    load = Workload.from_recipe(config)
    if config.packing.enabled:  # a row as one sample, with as many images as the samples in it
        tokens = micro_batch_tokens(config, layout)
        load = Workload(tokens, load.images * tokens / load.tokens)
        config = copy(config)
        config.trainer = replace(config.trainer, micro_batch_size=1)
    costs = Costs(config, load)
    candidates = [memory_on(costs, layout, rank) for rank in fullest_candidates(layout)]
    if not whole_logits:
        candidates = [replace(one, logits=0.0) for one in candidates]
    return max(candidates, key=lambda one: one.total)


def _changes(config: Config, layout: Layout, *, whole_logits: bool, bf16: bool) -> Iterator[tuple[str, Config]]:
    """Overrides and the recipes that they make."""
    micro = micro_batch_size(config, layout)
    settings = [Setting("trainer", "recompute", "full"), Setting("optimizer", "distributed", True)]
    if config.packing.enabled:
        settings.append(Setting("trainer", "micro_batch_tokens", micro_batch_tokens(config, layout) // 2))
    else:
        settings += [Setting("trainer", "micro_batch_size", size) for size in sorted({max(1, micro // 2), 1})]
    if config.model.vision is not None:
        settings.append(Setting("trainer", "encode_window", 1))
    if bf16:
        settings.append(Setting("trainer", "precision", "bf16"))
    if whole_logits:
        settings.append(Setting("kernels", "linear_cross_entropy", "torch"))
    for setting in settings:
        changed = setting.applied(config)
        if changed is not config:
            yield str(setting), changed
    for axis in ("tp", "pp"):
        size = 2 * getattr(layout.llm, axis)
        found = copy(config)
        parallel = replace(config.model.llm.parallel, **{axis: size, "dp": None})
        found.model = replace(config.model, llm=replace(config.model.llm, parallel=parallel))
        yield f"model.llm.parallel.{axis}={size}", found
