"""The benchmarks run; their figures are for people, not for tests."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from tests.support.bench import bench_script, run_bench

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("model", ["tiny", "small"])
def test_engine_cost(model: str) -> None:
    options = ["--model", model, "--threads", "1", "--blocks", "1", "--steps", "1"]
    result = run_bench("engine_cost", *options)
    assert result["model"] == model
    assert result["ours_tokens_per_s"] > 0
    assert result["plain_tokens_per_s"] > 0


def test_phases() -> None:
    result = run_bench("phases", "--steps", "1")
    assert result["calls_per_step"] > 15
    assert 0 < result["share"] < 0.05  # 0.0007 on a quiet machine


def test_generation() -> None:
    """It ends with an error where the two ways write different tokens."""
    result = run_bench("generation", "--new-tokens", "24", "--batch", "2", "--rounds", "1")
    assert result["cached_ms_per_token"] > 0
    assert result["recomputed_ms_per_token"] > 0


def test_layouts() -> None:
    options = ["--steps", "1", "--rounds", "1", "--samples", "8"]
    result = run_bench("layouts", *options)
    assert list(result["small"]) == ["uniform", "heterogeneous", "full heterogeneous", "decoupled"]
    assert all(one["measured_s"] > 0 and one["predicted_s"] > 0 for one in result["small"].values())
    large = result["large_predicted_s"]
    assert large["full heterogeneous"] < large["heterogeneous"] < large["uniform"]


def test_import_memory() -> None:
    (result,) = run_bench("import_memory", "--gb", "0.4", "--ranks", "2", "--axes", "tp").values()
    assert result["shard"] * 2 >= result["size"]
    assert result["shard"] < result["peak"] - result["before"] < result["allowed"]


def test_balance() -> None:
    options = ["--steps", "1", "--rounds", "1"]
    result = run_bench("balance", *options)
    assert result["none"]["simulated"] == 1 > result["llm"]["simulated"] > result["full"]["simulated"]
    assert result["none"]["llm"] > result["full"]["llm"]
    assert result["none"]["vision"] > result["full"]["vision"]


def test_packing() -> None:
    options = ["--steps", "2", "--blocks", "1", "--samples", "4", "--threads", "1"]
    sides = {f"{tool}, {rows}" for tool in ("loop", "Trainer") for rows in ("padded", "packed")}
    assert set(run_bench("packing", *options)["ratio"]) == sides


def test_loader() -> None:
    result = run_bench("loader", "--steps", "1", "--rounds", "1", "--threads", "1")
    assert 0 <= result["wait_share"] < 1
    assert result["step_s"] > 0 and result["loader_s"] > 0


def test_planner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    planner = bench_script("planner", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["planner.py", "--ranks", "4", "--kinds", "omni", "--packs", "--json"])
    planner.main()
    tables = json.loads(capsys.readouterr().out)
    lock_step = {row["plan"]: row["lock_step"] for row in tables["plans"]}
    assert lock_step.pop("ours") < min(lock_step.values())
    assert tables["packs"][0]["next_fit"] < tables["packs"][0]["ours"] <= 1
    monkeypatch.setattr(sys, "argv", ["planner.py", "--ranks", "4", "--kinds", "text"])
    planner.main()
    assert "| 4 | ours |" in capsys.readouterr().out


@pytest.mark.parametrize("baseline", ["longest_first", "karmarkar_karp"])
def test_baselines_are_what_they_are_called(baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = bench_script("planner", monkeypatch)
    costs = np.array([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    bins = getattr(planner, baseline)(costs, 3)
    assert np.ptp(np.bincount(bins, weights=costs)) <= 2
    if baseline == "karmarkar_karp":
        assert sorted(np.bincount(bins).tolist()) == [3, 3, 4]


@pytest.mark.parametrize(
    "layout",
    [[], ["--padding", "7"], ["--ranks", "2", "--vocabulary", "150001", "--tokens", "1024"]],
    ids=["even", "padded", "tp2 padded"],
)
def test_cross_entropy_memory(layout: list[str]) -> None:
    """The one figure that tests rely on: at least four times less memory, for the same loss and gradients."""
    result = run_bench("cross_entropy", "--tokens", "512", "--hidden", "32", "--vocabulary", "150000", *layout)
    assert result["memory_ratio"] > 4
    assert result["loss_difference"] < 1e-5
    assert result["gradient_difference"] < 1e-4
