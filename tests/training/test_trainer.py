"""What a recipe says is what the trainer does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.config.errors import UserError
from loongforge.kernels.backend import select
from tests.training.recipes import quick_config, steps_of

select("auto").activate()

FIELDS = [
    *("step", "loss", "lr", "grad_norm", "grad_norm/vision", "grad_norm/projector", "grad_norm/llm", "loss_tokens"),
    *("tokens", "samples", "images", "step_time_s", "data_wait_s", "tokens_per_s", "tflops", "mfu", "memory_gib"),
    *("balance/llm", "balance/vision", "skipped"),
]
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, data_dir: Path) -> Run:
    """Trains in this process; returns the run's folder."""
    from loongforge.training.main import run as train

    def start(name: str, *overrides: str) -> Path:
        steps = [] if any(o.startswith("trainer.steps") for o in overrides) else ["trainer.steps=6"]
        assert train(*quick_config(tmp_path / name, data_dir, *steps, *overrides)) == 0
        return tmp_path / name

    return start


def _losses(run_dir: Path) -> list[float]:
    return [record["loss"] for record in steps_of(run_dir)]


def _weights(config_of: Path, data_dir: Path) -> dict[str, torch.Tensor]:
    """All weights of a run's last checkpoint."""
    from loongforge.components.registry import typed_config
    from loongforge.config.saved import load_config
    from loongforge.inference.session import loaded_model

    with loaded_model(typed_config(load_config(config_of / "config.yaml")), str(config_of)) as loaded:
        return {name: param.detach().clone() for name, param in loaded.runner.model.named_parameters()}


def test_metrics_have_every_field_as_strict_json(run: Run) -> None:
    lines = (run("fields") / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON")) for line in lines]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert all(set(FIELDS) <= set(record) for record in steps)
    assert records[-1]["eval/samples"] == 16
    assert {"eval/loss", "eval/exact_match"} < set(records[-1])


def test_accumulation_changes_nothing(run: Run) -> None:
    whole, parts = _losses(run("whole")), _losses(run("parts", "trainer.micro_batch_size=2"))
    assert max(abs(a - b) for a, b in zip(whole, parts, strict=True)) < 1e-5


def test_recomputation_changes_nothing(run: Run) -> None:
    kept, recomputed = _losses(run("kept")), _losses(run("recomputed", "trainer.recompute=full"))
    assert max(abs(a - b) for a, b in zip(kept, recomputed, strict=True)) < 1e-6


def test_frozen_parts_stay_and_others_move(run: Run, data_dir: Path) -> None:
    first = run("start", "trainer.steps=1")
    start = _weights(first, data_dir)
    frozen = ["model.vision.freeze=true", "model.llm.freeze=true", "trainer.steps=8"]
    sources = [f"model.{name}.init_from={first}" for name in ("vision", "projector", "llm")]
    end = _weights(run("end", *frozen, *sources), data_dir)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if name.startswith("projector.")}


def test_lr_scale_scales_the_update(run: Run, data_dir: Path) -> None:
    constant = [
        "optimizer.schedule=constant",
        "optimizer.warmup_steps=0",
        "optimizer.weight_decay=0",
        "trainer.steps=1",
    ]
    before = _weights(run("none", *constant, "optimizer.lr=1e-12"), data_dir)
    plain = _weights(run("plain", *constant), data_dir)
    scaled = _weights(run("scaled", *constant, "model.llm.lr_scale=0.5"), data_dir)
    for name, start in before.items():
        ratio = (scaled[name] - start).norm() / (plain[name] - start).norm()
        assert ratio == pytest.approx(0.5 if name.startswith("llm.") else 1.0, rel=1e-2), name


def test_bf16_learns(run: Run) -> None:
    losses = _losses(run("bf16", "trainer.precision=bf16", "trainer.steps=30", "optimizer.warmup_steps=5"))
    assert losses[-1] < losses[0] - 1.5


def test_parts_of_another_dtype(run: Run) -> None:
    fast = ["optimizer.warmup_steps=5", "trainer.steps=30"]
    losses = _losses(run("mixed", "model.vision.dtype=bf16", "model.vision.freeze=true", *fast))
    assert losses[-1] < losses[0] - 1.5


def test_a_step_that_is_not_finite_is_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from loongforge.model.execution import Runner

    real, calls = Runner.train, [0]

    def sometimes(self: Any, *args: Any) -> torch.Tensor:
        calls[0] += 1
        loss = real(self, *args)
        if calls[0] == 3:
            next(self.model.llm.parameters()).main_grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(Runner, "train", sometimes)
    run_dir = run("nan")
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][:6]
    assert [record["skipped"] for record in records] == [0, 0, 1, 1, 1, 1]
    assert records[2]["grad_norm"] is None
    assert all(math.isfinite(record["loss"]) for record in records)


def test_too_many_of_them_end_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from loongforge.model.execution import Runner

    monkeypatch.setattr(Runner, "train", lambda self, *args: torch.tensor(math.inf, dtype=torch.float64))
    with pytest.raises(UserError, match=r"trainer.max_skipped=2"):
        run("inf", "trainer.max_skipped=2")


def test_text_only_recipe(tmp_path: Path) -> None:
    from loongforge.components.registry import typed_config
    from loongforge.config.compose import compose
    from loongforge.training.main import run as train

    small = ["trainer.global_batch_size=2", "model.llm.num_layers=1", "trainer.eval_samples=2", "trainer.steps=25"]
    where = [
        f"run.dir={tmp_path / 'run'}",
        f"data.dir={tmp_path / 'text'}",
        "optimizer.warmup_steps=2",
        "optimizer.lr=5e-3",
    ]
    tree = compose(["+recipe=llm_pretrain", *small, *where]).tree
    (tmp_path / "run").mkdir()
    assert train(typed_config(tree), tree) == 0
    losses = _losses(tmp_path / "run")
    assert losses[-1] < losses[0] - 0.5


def test_shuffled_images_teach_little(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score comes from the images: with each sample's images exchanged for another's, it stays far below."""
    from loongforge.model.execution import Runner

    learn = [
        "trainer.steps=160",
        "trainer.global_batch_size=32",
        "optimizer.warmup_steps=20",
        "trainer.eval_samples=300",
    ]
    honest = _last_score(run("honest", *learn))
    real = Runner.train
    monkeypatch.setattr(Runner, "train", lambda self, batches, number: real(self, _rolled(batches), number))
    shuffled = _last_score(run("shuffled", *learn))
    assert honest > shuffled + 0.1, (honest, shuffled)


def _rolled(by_replica: Any) -> Any:
    for batch in by_replica[0]:
        batch.images = batch.images.roll(7, 0)
    return by_replica


def _last_score(run_dir: Path) -> float:
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["eval/exact_match"]
