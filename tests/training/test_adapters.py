"""Adapters through the trainer: they alone train, with their own learning rate, from another run's weights, resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.recipes import quick_config, steps_of

LORA = ["model.llm.lora={rank: 4, alpha: 8, lr_scale: 3.0}", "model.vision.freeze=true", "model.projector.freeze=true"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A run without adapters."""
    return _run(tmp_path_factory.mktemp("base"), data_dir, "trainer.steps=2")


def _run(run_dir: Path, data_dir: Path, *overrides: str) -> Path:
    from loongforge.training.main import run

    assert run(*quick_config(run_dir, data_dir, *overrides)) == 0
    return run_dir


def _weights(run_dir: Path) -> dict[str, bytes]:
    """Every parameter of a run's latest checkpoint."""
    from loongforge.components.registry import typed_config
    from loongforge.config.saved import load_config
    from loongforge.inference.session import loaded_model

    with loaded_model(typed_config(load_config(run_dir / "config.yaml")), str(run_dir)) as loaded:
        return {name: param.detach().numpy().tobytes() for name, param in loaded.runner.model.named_parameters()}


def test_only_adapters_move(base: Path, data_dir: Path, tmp_path: Path) -> None:
    starts = [f"model.{name}.init_from={base}" for name in ("vision", "projector", "llm")]
    adapted = _weights(_run(tmp_path / "lora", data_dir, *LORA, *starts, "trainer.steps=2"))
    before = _weights(base)
    assert {name: adapted[name] for name in before} == before
    moved = [name for name in adapted if name not in before]
    assert len(moved) == 2 * 4 * 2, "A and B of four layers' linears in two layers"
    assert all(any(adapted[name]) for name in moved), "B is zero before the first step only"


def test_a_resumed_run_is_the_uninterrupted_one(data_dir: Path, tmp_path: Path) -> None:
    options = [*LORA, "++model.llm.lora.dropout=0.2", "trainer.steps=6", "checkpoint.every=3"]
    whole = _run(tmp_path / "whole", data_dir, *options)
    resume = f"run.resume={whole / 'checkpoints' / 'step_00000003'}"
    rest = _run(tmp_path / "rest", data_dir, *options, resume)
    assert steps_of(rest) == steps_of(whole)[3:]
    other = _run(tmp_path / "other", data_dir, *options, "++model.llm.lora.dropout=0.0", resume)
    assert steps_of(other) != steps_of(rest)


def test_the_learning_rate_is_their_own(data_dir: Path, tmp_path: Path) -> None:
    """Rates that make the same product give the same run; another factor gives another."""
    losses = {}
    for scale, rate in ((3.0, 1e-3), (1.0, 3e-3), (1.0, 1e-3)):
        options = [*LORA, f"++model.llm.lora.lr_scale={scale}", f"optimizer.lr={rate}", "optimizer.weight_decay=0"]
        found = steps_of(_run(tmp_path / f"{scale}_{rate}", data_dir, *options, "trainer.steps=3"))
        losses[scale, rate] = [step["loss"] for step in found]
    assert losses[3.0, 1e-3] == pytest.approx(losses[1.0, 3e-3], abs=1e-6)
    assert losses[3.0, 1e-3] != pytest.approx(losses[1.0, 1e-3], abs=1e-6)
