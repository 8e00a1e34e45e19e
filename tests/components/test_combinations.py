"""Every encoder with every projector and every language model: composed from YAML, a step of training, saved and read
again with equal weights; and the table in docs/components.md says what is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.components.combinations import PAGE, all_combinations, compose_one, obstacles, page, some_combinations

SOME = sorted(set(some_combinations()))
REFUSED = {("qwen2_vit", "llava_next"), ("qwen2_5_vit", "llava_next")}


def _check(combination: tuple[str, str, str], groups: Any, folder: Path) -> None:
    from loongforge.training.state import load_training, save_training
    from loongforge.training.verify.trial import Trial, full_parameters

    config = compose_one(*combination)
    if combination[:2] in REFUSED:
        assert obstacles(config)
        return
    assert not obstacles(config)
    trial = Trial(config, groups)
    before = full_parameters(trial.model, groups)
    outcome = trial.run(range(1))
    assert np.isfinite(outcome.losses).all()
    assert set(outcome.gradients) == set(before)
    assert all(np.isfinite(gradient).all() for gradient in outcome.gradients.values())
    for part in ("vision.", "projector.", "llm."):
        assert any(gradient.any() for name, gradient in outcome.gradients.items() if name.startswith(part)), part
    save_training(folder, trial.model, trial.optimizers, groups)
    config.trainer.seed += 1
    again = Trial(config, groups)
    load_training(folder, again.model, again.optimizers, groups)
    loaded = full_parameters(again.model, groups)
    assert all(np.array_equal(loaded[name], value) for name, value in outcome.parameters.items())
    assert set(loaded) == set(before)


@pytest.mark.parametrize("combination", SOME, ids="-".join)
def test_trains_and_round_trips(combination: tuple[str, str, str], groups: Any, tmp_path: Path) -> None:
    _check(combination, groups, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", sorted(set(all_combinations()) - set(SOME)), ids="-".join)
def test_every_combination(combination: tuple[str, str, str], groups: Any, tmp_path: Path) -> None:
    _check(combination, groups, tmp_path)


def test_every_pair_is_in_the_short_run() -> None:
    assert {c[:2] for c in SOME} == {c[:2] for c in all_combinations()}
    assert {c[2] for c in SOME} == {c[2] for c in all_combinations()}


def test_the_table_in_the_docs_is_true() -> None:
    assert page() == PAGE.read_text(), "run python -m tests.components.combinations"
