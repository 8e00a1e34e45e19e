"""Small, quick runs of the shipped recipes, for tests of the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loongforge.components.registry import typed_config
from loongforge.config.compose import compose
from loongforge.config.schema import Config

QUICK = [
    "trainer.eval_samples=16",
    "trainer.sanity_samples=0",
    "trainer.generate_samples=0",
    "trainer.threads=1",
    "trainer.global_batch_size=8",
    "logging.tensorboard=false",
    "logging.samples=true",
    "model.vision.num_layers=2",
    "model.llm.num_layers=2",
]


def quick_config(run_dir: Path, data_dir: Path, *overrides: str) -> tuple[Config, dict[str, Any]]:
    """A composed and validated recipe, ready for `loongforge.training.main.run`."""
    tree = compose(["+recipe=llava_sft", *QUICK, f"run.dir={run_dir}", f"data.dir={data_dir}", *overrides]).tree
    run_dir.mkdir(parents=True, exist_ok=True)
    return typed_config(tree), tree


def steps_of(run_dir: Path) -> list[dict[str, Any]]:
    """What decides whether two runs are the same: a record for each step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "grad_norm", "loss_tokens", "lr")
    return [{key: line[key] for key in keys} for line in lines if "loss" in line]


def samples_of(run_dir: Path) -> list[dict[str, Any]]:
    """The ids of every step's samples, over all data-parallel ranks."""
    lines: list[dict[str, Any]] = []
    for file in sorted(run_dir.glob("samples_*.jsonl")):
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    return lines
