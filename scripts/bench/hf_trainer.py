"""transformers' own Trainer on the samples of packing.py, in blocks of steps whose time is taken."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from loongforge.kernels.backend import select

Collate = Callable[[Sequence[Any]], dict[str, torch.Tensor]]


class _Clock(TrainerCallback):
    """Time from the end of the first step, which warms up, to that of the last."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Nothing is timed yet."""
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step is done."""
        self.ends.append(time.perf_counter())


class TrainerSide:
    """A Trainer that goes through the same samples in every block."""

    def __init__(self, model: torch.nn.Module, steps: Sequence[Sequence[Any]], collate: Collate) -> None:
        """Args:

        model: of transformers.
        steps: this rank's samples of each step; the first warms up.
        collate: makes a batch of a step's.
        """
        self.clock = _Clock()
        args = TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="bench-trainer-"),
            max_steps=len(steps),
            per_device_train_batch_size=1,
            optim="adamw_torch",
            learning_rate=1e-4,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
            ddp_backend=select("cpu").dist_backend,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=False,
        )
        # an item is a whole batch, and every rank's Trainer takes its share of the items
        items = [some for some in steps for _ in range(args.world_size)]
        self.trainer = Trainer(
            model=model,
            args=args,
            train_dataset=items,  # type: ignore[arg-type]
            data_collator=lambda batch: collate(batch[0]),
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)

    def block(self) -> float:
        """Seconds of all steps but the first."""
        self.trainer.train()
        return self.clock.ends[-1] - self.clock.ends[0]
