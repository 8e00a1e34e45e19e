"""What a comparison of outcomes takes for a difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loongforge.training.verify.compare import compare
from loongforge.training.verify.outcome import Outcome

ONE = Outcome(
    losses=[2.0, 1.5],
    norms=[1.0, 0.9],
    gradients={"llm.w": np.ones(4, np.float32)},
    parameters={"llm.w": np.ones(4, np.float32), "vision.w": np.ones(4, np.float32)},
)


def test_equal_outcomes_have_no_problem() -> None:
    assert compare(ONE, [ONE, ONE]).problems == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (dict(moved=["vision.w"]), "vision.w is frozen and has changed"),
        (dict(differing=["llm.w"]), "replicas of llm.w are not the same"),
        (dict(losses=[2.0, 1.5001]), "losses differ"),
        (dict(losses=[2.0, float("nan")]), "losses differ"),
        (dict(norms=[1.0, 0.9001]), "gradient norms differ"),
        (dict(gradients={"llm.w": np.array([1, 1, 1, 1.001], np.float32)}), "gradient of llm.w differs"),
        (dict(gradients={}), "no rank has a gradient of llm.w"),
        (dict(parameters={"llm.w": ONE.parameters["llm.w"]}), "no rank holds vision.w"),
    ],
)
def test_a_difference_is_named(changes: dict, problem: str) -> None:
    found = compare(ONE, [replace(ONE, **changes)]).problems
    assert any(problem in line for line in found), found
