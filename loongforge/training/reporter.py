"""Turns what happens in a run into metrics, console lines and files. Only rank 0 shows anything."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError
from loongforge.config.saved import save_config
from loongforge.config.schema import Config
from loongforge.data.batch import BadSample, StepData
from loongforge.data.fetch import BadSampleError
from loongforge.data.preview import preview
from loongforge.data.quarantine import QuarantineLedger
from loongforge.kernels.phases import PHASES
from loongforge.kernels.verified import measured
from loongforge.model.assembly import component_configs
from loongforge.model.flops import forward_flops, image_tokens, num_params
from loongforge.parallel.session import broadcast_object
from loongforge.training.evaluation import Evaluation
from loongforge.training.record import StepTaken, step_record
from loongforge.training.run_setup import Setup
from loongforge.training.step_times import summary
from loongforge.training.telemetry.console import Console
from loongforge.training.telemetry.logs import setup_logging
from loongforge.training.telemetry.metrics import MetricsWriter, cut_after


class Reporter:
    """Reports of one run.

    Args:
        config: The validated recipe.
        tree: The same as plain values.
        setup: Model and data.
        run_dir: Where the run lives.
    """

    def __init__(self, config: Config, tree: dict[str, Any], setup: Setup, run_dir: Path) -> None:
        self.config, self.setup, self.run_dir = config, setup, run_dir
        self.main = setup.world.rank == 0
        setup_logging(run_dir, setup.world.rank)
        self.began = time.perf_counter()
        self.tokens = 0
        self.training_seconds = 0.0
        self.steps = 0
        self.phase_seconds = dict.fromkeys(PHASES, 0.0)
        """Of this rank."""
        self.last_evaluation: dict[str, Any] = {}
        self.last_checkpoint: Path | None = None
        self.replica = setup.groups.reported
        """The LLM replica that this rank speaks for."""
        self.samples_file = run_dir / f"samples_{self.replica}.jsonl"
        if self.replica is not None:
            cut_after(self.samples_file, setup.progress.step)
        if self.main:
            self._open(tree)

    def _open(self, tree: dict[str, Any]) -> None:
        config, step = self.config, self.setup.progress.step
        save_config(tree, self.run_dir / "config.yaml")
        self.console = Console(
            mode=config.logging.console, total_steps=config.trainer.steps, every=config.logging.every
        )
        self.metrics = MetricsWriter(
            self.run_dir,
            resume_step=step,
            tensorboard=config.logging.tensorboard,
            wandb=config.logging.wandb,
            name=config.name,
            config=tree,
        )
        self.ledger = QuarantineLedger(self.run_dir / "quarantine.jsonl", config.data.max_bad)

    def begin(self, step: int) -> None:
        """Before step 1: what is trained, and what a sample looks like to the model."""
        if not self.main:
            return
        self.console.info(f"run {self.run_dir}")
        self._show_kernels()
        for note in self.setup.notes:
            (self.console.warning if "not used" in note else self.console.info)(note)
        self.console.model(self._model_rows())
        if step < self.config.trainer.steps:
            self._show_sample()

    def _show_kernels(self) -> None:
        backend, chosen = self.setup.backend, self.setup.kernels
        emulated = backend.detect().state == "emulated"
        if emulated:
            self.console.warning(f"EMULATED {backend.title}: a check of contracts, nothing runs on its hardware")
        self.console.info(f"backend {backend.title}; kernels {chosen.text()}")
        found = {
            "backend": backend.name,
            "title": backend.title,
            "emulated": emulated,
            "versions": dict(backend.versions()),
            "kernels": chosen.describe(measured(backend)),
        }
        (self.run_dir / "kernels.json").write_text(json.dumps(found, indent=1), encoding="utf-8")

    def _show_sample(self) -> None:
        loader = self.setup.loader
        try:
            shown = preview(loader.fetcher.fetch(*loader.order.at(0)), self.setup.processor)
        except BadSampleError:
            return  # the first step says what is wrong with it, or replaces it
        self.console.sample(shown)

    def _model_rows(self) -> list[dict[str, Any]]:
        model, layout = self.config.model, self.setup.groups.layout
        params = num_params(model)
        length = self.setup.processor.max_length
        per_image = max(1, image_tokens(model))
        flops = forward_flops(model, tokens=1, images=1 / per_image, seq_len=length)
        return [
            {
                "component": name,
                "type": part.type,
                "params": params[name],
                "trains": ("whole" if part.trains_whole else "partly") if part.trains else "no",
                "dtype": part.dtype or self.config.trainer.precision,
                "flops_per_token": flops[name],
                "layout": layout.text(name),
            }
            for name, part in component_configs(self.config).items()
        ]

    def start(self, step: int) -> None:
        """The first step begins."""
        if self.main:
            self.console.start(step)

    def step(self, step: int, taken: StepTaken) -> None:
        """After step number `step` (1-based)."""
        if self.config.logging.samples:
            self._write_sample_ids(step, taken.data)
        self.steps += 1
        for phase, seconds in taken.own_times.items():
            self.phase_seconds[phase] += seconds
        if not self.main:
            return
        self.tokens += taken.counts.tokens
        self.training_seconds += taken.seconds
        record = {"step": step, **step_record(taken, self.config, self.setup)}
        self.metrics.write(record)
        self.console.step(record)
        if taken.outcome.skipped:
            loss, norm = taken.loss, taken.outcome.grad_norm
            self.console.warning(f"step {step}: loss {loss:g}, gradient norm {norm:g}: no update")

    def _write_sample_ids(self, step: int, data: StepData) -> None:
        if self.replica is not None:
            ids = [name for batch in data.micro_batches[self.replica] for name in batch.ids]
            with open(self.samples_file, "a") as file:
                file.write(json.dumps({"step": step, "ids": ids}) + "\n")

    def quarantine(self, bad: Sequence[BadSample]) -> None:
        """Notes bad samples. Collective over the world.

        Raises:
            UserError: on every rank, where the limit is passed.
        """
        problem = ""
        if self.main:
            try:
                for sample in self.ledger.record(bad):
                    self.console.warning(f"sample {sample.id} of {sample.shard} left out: {sample.reason}")
            except UserError as error:
                problem = str(error)
        if agreed := broadcast_object(problem):
            raise UserError(str(agreed))

    def evaluation(self, step: int, result: Evaluation) -> None:
        """After an evaluation."""
        if not self.main:
            return
        summary = result.summary
        record = {
            "step": step,
            "eval/loss": summary.loss,
            "eval/exact_match": summary.exact_match,
            "eval/samples": summary.samples,
        }
        self.last_evaluation = record
        self.metrics.write(record)
        self.console.evaluation(record, [(a.question, a.answer, a.reference) for a in result.answers])

    def saved(self, path: Path) -> None:
        """After a checkpoint."""
        self.last_checkpoint = path
        if self.main:
            self.console.info(f"saved {path}")

    def exported(self, path: Path) -> None:
        """After a Hugging Face folder."""
        if self.main:
            self.console.info(f"exported {path}")

    def stopped(self, step: int) -> None:
        """A signal ended the run."""
        if self.main:
            self.console.warning(
                f"stopped by a signal after step {step}; the same command with run.dir={self.run_dir} goes on"
            )

    def finish(self) -> None:
        """The report at the end. Collective over the world."""
        shares = summary(self.phase_seconds, self.steps)
        if not self.main:
            return
        self.console.phases(shares)
        rows = []
        if self.last_evaluation:
            score = self.last_evaluation
            rows.append(("held-out exact match", f"{score['eval/exact_match']:.4f} of {score['eval/samples']} samples"))
            rows.append(("held-out loss", f"{score['eval/loss']:.4f}"))
        if self.training_seconds:
            rows.append(("tokens per second", f"{self.tokens / self.training_seconds:,.0f}"))
        rows.append(("time", f"{time.perf_counter() - self.began:.0f} s, {self.training_seconds:.0f} s of it in steps"))
        rows.append(("peak memory", f"{self.setup.backend.peak_memory_bytes() / 2**30:.2f} GiB per process"))
        rows.append(("checkpoint", str(self.last_checkpoint or self.run_dir / "checkpoints")))
        image = " --image FILE" if self.config.model.vision is not None else ""
        self.console.report(rows, f'loongforge generate --checkpoint {self.run_dir}{image} --prompt "..."')

    def close(self) -> None:
        """Ends the live bar and closes files."""
        if self.main:
            self.console.close()
            self.metrics.close()
