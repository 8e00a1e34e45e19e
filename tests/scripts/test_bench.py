"""The benchmarks run; their figures are for people, not for tests."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.repo.files import REPO


@pytest.mark.parametrize("model", ["tiny", "small"])
def test_engine_cost(model: str) -> None:
    script = REPO / "scripts" / "bench" / "engine_cost.py"
    options = ["--model", model, "--threads", "1", "--blocks", "1", "--steps", "1", "--json"]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=120, check=True
    )
    result = json.loads(done.stdout)
    assert result["model"] == model
    assert result["ours_tokens_per_s"] > 0
    assert result["plain_tokens_per_s"] > 0


def test_layouts() -> None:
    script = REPO / "scripts" / "bench" / "layouts.py"
    options = ["--steps", "1", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, str(script), *options], capture_output=True, text=True, timeout=280, check=True
    )
    result = json.loads(done.stdout)
    assert list(result["small"]) == ["uniform", "heterogeneous", "full heterogeneous", "decoupled"]
    assert all(one["measured_s"] > 0 and one["predicted_s"] > 0 for one in result["small"].values())
    large = result["large_predicted_s"]
    assert large["full heterogeneous"] < large["heterogeneous"] < large["uniform"]
