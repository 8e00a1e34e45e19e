"""The training loop: load, forward and backward, step, log, evaluate, save."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from loongforge.config.errors import UserError
from loongforge.config.schema import Config
from loongforge.data.batch import BadSample, StepData
from loongforge.data.quarantine import check_ratio
from loongforge.kernels.backend import Backend
from loongforge.parallel.session import World, gather_lists, sum_over_world
from loongforge.training.counts import StepCounts, count_step
from loongforge.training.optimizer import StepOutcome
from loongforge.training.record import StepTaken
from loongforge.training.reporter import Reporter
from loongforge.training.run_setup import Setup
from loongforge.training.schedule import learning_rate
from loongforge.training.signals import StopSignal
from loongforge.training.step_times import mean_over_ranks, with_rest
from loongforge.training.trace import Tracer


class Trainer:
    """Runs a recipe on this rank. A context manager, since it holds files and threads.

    Args:
        config: The validated recipe.
        tree: The same as plain values, for the run's `config.yaml`.
        world: This process among all.
        backend: Its devices.
        run_dir: Where the run lives.
    """

    def __init__(self, config: Config, tree: dict[str, Any], *, world: World, backend: Backend, run_dir: Path) -> None:
        self.config = config
        if config.profile.memory:
            backend.tools().record_memory()
        self.setup = Setup(config, tree, world=world, backend=backend, run_dir=run_dir)
        self.reporter = Reporter(config, tree, self.setup, run_dir)
        self.tracer = Tracer(config.profile, backend, self.setup.phases, run_dir, world.rank)
        self.stop = StopSignal()
        self.skipped_in_a_row = 0

    def __enter__(self) -> Trainer:
        self.stop.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.__exit__(kind, error, trace)
        self.reporter.close()
        self.setup.close()

    def run(self) -> int:
        """Trains to the last step, or to a signal.

        Returns:
            Exit code: 0, or 130 where a signal ended the run after a checkpoint.
        """
        setup, steps = self.setup, self.config.trainer.steps
        first = setup.progress.step
        self.reporter.begin(first)
        if setup.evaluator is not None and first < steps:
            setup.evaluator.sanity_check()
        self.reporter.start(first)
        for step in range(first, steps):
            done = step + 1
            with self.tracer.step(done):
                stop = self._step(step)
            if self._due(self.config.trainer.eval_every, done):
                self._evaluate(done)
            if stop or self._due(self.config.checkpoint.every, done):
                self.reporter.saved(setup.save(done))
            every = self.config.trainer.export_hf_every
            if every > 0 and self._due(every, done):
                self.reporter.exported(setup.export(done))
            if stop and done < steps:
                self.reporter.stopped(done)
                return 130
        self.reporter.finish()
        return 0

    def _due(self, every: int, done: int) -> bool:
        return done == self.config.trainer.steps or (every > 0 and done % every == 0)

    def _step(self, step: int) -> bool:
        """One optimizer step; returns whether all ranks stop after it, because one has received a signal."""
        phases = self.setup.phases
        began = time.perf_counter()
        phases.start()
        with phases("data"):
            data = self.setup.loader.load(step)
        counts = count_step(
            data,
            self.setup.groups,
            self.config.model,
            image_token=self.setup.image_token,
            signalled=self.stop.requested > 0,
            device=self.setup.runner.device,
        )
        if not counts.same_data:
            raise UserError(
                f"step {step + 1}: the ranks have not divided the same samples alike; they do not see the same data. "
                "Are data.train and its files the same on every machine?"
            )
        if counts.bad:
            self._leave_out(self._gather_bad(data), counts, step)
        rate = learning_rate(self.config.optimizer, step, self.config.trainer.steps)
        loss, outcome = self._learn(data, counts, rate)
        experts = None if self.setup.runner.experts is None else self.setup.runner.experts.figures()
        self._count_skipped(outcome, step)
        times = phases.stop()
        seconds = time.perf_counter() - began
        self.setup.refiner.note(step, data, times, self.setup.runner.encodings)
        own = with_rest(times, seconds)
        taken = StepTaken(
            data=data,
            counts=counts,
            loss=loss,
            rate=rate,
            outcome=outcome,
            times=mean_over_ranks(own),
            own_times=own,
            experts=experts,
        )
        self.reporter.step(step + 1, taken)
        return counts.stop

    def _learn(self, data: StepData, counts: StepCounts, rate: float) -> tuple[float, StepOutcome]:
        """Gradients of the global batch, then an update of all weights or of none."""
        setup, phases = self.setup, self.setup.phases
        device = setup.runner.device
        with phases("data"):
            batches = {r: [batch.to(device) for batch in part] for r, part in data.micro_batches.items()}
        with phases("optimizer"):
            setup.optimizers.clear_gradients()
        loss = setup.runner.train(batches, counts.loss_tokens)
        with phases("reduce"):
            setup.optimizers.reduce_gradients()
            place = setup.groups.place
            if place is None or place.tp != 0:  # the ranks of a tensor-parallel group have the same loss
                loss = torch.zeros_like(loss)
            mean = sum_over_world(loss).item()
        with phases("optimizer"):
            return mean, setup.optimizers.step(rate, usable=math.isfinite(mean))

    def _count_skipped(self, outcome: StepOutcome, step: int) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if outcome.skipped else 0
        self.setup.progress.advance(step + 1, skipped=outcome.skipped)
        if self.skipped_in_a_row > self.config.trainer.max_skipped:
            raise UserError(
                f"{self.skipped_in_a_row} steps in a row had a loss or gradient that is not finite, more than "
                f"trainer.max_skipped={self.config.trainer.max_skipped}; the weights are those before step "
                f"{step + 2 - self.skipped_in_a_row}. A lower optimizer.lr often helps"
            )

    def _leave_out(self, bad: list[BadSample], counts: StepCounts, step: int) -> None:
        """Notes the samples that were replaced; all ranks count alike, and stop alike."""
        self.reporter.quarantine(bad)
        self.setup.progress.left_out += counts.bad
        used = (step + 1) * self.config.trainer.global_batch_size
        check_ratio(self.setup.progress.left_out, used, self.config.data.max_bad_ratio, bad[-1])

    def _gather_bad(self, data: StepData) -> list[BadSample]:
        """Bad samples of all data-parallel replicas, on every rank. Collective over the world."""
        replica = self.setup.groups.reported
        return gather_lists([] if replica is None else data.bad[replica])

    def _evaluate(self, done: int) -> None:
        if self.setup.evaluator is not None:
            self.reporter.evaluation(done, self.setup.evaluator.evaluate())
