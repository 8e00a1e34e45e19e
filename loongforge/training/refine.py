"""Refines the balancer's costs from measured phase times, alike on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from loongforge.config.schema import Config
from loongforge.data.balance import CostModel
from loongforge.data.batch import StepData
from loongforge.data.cost_fit import CostFit
from loongforge.data.loader import TrainLoader
from loongforge.parallel.groups import Groups
from loongforge.parallel.session import sum_over_world
from loongforge.planning.sample_costs import cost_model

_WARM_UP = 2
"""First steps of a process, which are slower for other reasons."""


class CostRefiner:
    """Watches steps, and gives the loader new costs now and then.

    Only where a phase is a rank's own work: no pipeline, no encoders apart. New costs hold from a step on that no rank
    has prepared yet, so that all plan alike; which samples a step has does not depend on them.

    Args:
        config: The recipe.
        groups: Where this rank stands.
        loader: Whose plans use the costs.
        patches: Of an image that the encoder sees; 1 where images differ, whose patches are counted.
    """

    def __init__(self, config: Config, groups: Groups, loader: TrainLoader, patches: int) -> None:
        layout = groups.layout
        apart = layout.llm.pp > 1 or layout.decoupled
        self.every = 0 if apart or config.balance.mode == "none" else config.balance.refine_every
        self.groups, self.loader, self.patches = groups, loader, patches
        self.delay = config.data.prefetch + 2
        self.fit = CostFit(cost_model(config)) if self.every else None
        self.seen = 0

    def note(self, step: int, data: StepData, times: Mapping[str, float], encodings: int) -> None:
        """After a step; collective over the world in every `balance.refine_every`-th.

        Args:
            step: Its number, from 0.
            data: What this rank had.
            times: This rank's seconds in each phase.
            encodings: Windows that it encoded images of.
        """
        if self.fit is None:
            return
        self.seen += 1
        place = self.groups.place
        if self.seen > _WARM_UP and place is not None:
            lengths = [b.cu_seqlens.diff() for b in data.micro_batches[place.dp] if b.cu_seqlens is not None]
            self.fit.note_llm(torch.cat(lengths).numpy(), 1e3 * (times["llm_forward"] + times["llm_backward"]))
            images = sum(batch.held_patches for part in data.micro_batches.values() for batch in part)
            if images:
                self.fit.note_vision(images * self.patches, encodings, 1e3 * times["encode"])
        if (step + 1) % self.every == 0:
            everyone = sum_over_world(torch.from_numpy(self.fit.pending())).numpy()
            self.loader.use_cost(step + self.delay, self.fit.update(everyone))

    def state(self) -> dict[str, Any] | None:
        """For the checkpoint: what has been measured, and which costs hold from which step."""
        if self.fit is None:
            return None
        costs = [[step, asdict(cost)] for step, cost in self.loader.costs]
        return {**self.fit.state(), "costs": costs}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Goes on from a checkpoint; one without costs changes nothing."""
        if self.fit is None or state is None:
            return
        for step, values in state["costs"]:
            self.loader.use_cost(step, CostModel(**values))
        self.fit.restore(state, self.loader.costs[-1][1])
