"""Packed, and balanced in any way, a run learns what the padded one does, on any number of ranks and in any layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankPool
from tests.training.commands import command
from tests.training.recipes import QUICK
from tests.training.runs import assert_same, records

STEPS, HALF = 8, 4
_FIXED = [
    *QUICK,
    *(
        f"trainer.steps={STEPS}",
        f"trainer.eval_every={STEPS}",
        f"checkpoint.every={HALF}",
        "trainer.micro_batch_size=4",
    ),
    *("optimizer.schedule=constant", "optimizer.warmup_steps=0", "optimizer.lr=3e-4", "trainer.global_batch_size=12"),
]
PACKED = ["packing.enabled=true", "trainer.micro_batch_tokens=128"]
LLM, FULL = [*PACKED, "balance.mode=llm"], [*PACKED, "balance.mode=full"]

RUNS = {
    "padded": (1, []),
    "packed": (1, PACKED),
    "llm": (1, LLM),
    "full": (1, FULL),
    "packed, dp2": (2, PACKED),
    "llm, dp2": (2, LLM),
    "full, dp2": (2, FULL),
    "full, dp2, refined": (2, [*FULL, "balance.refine_every=1"]),
    "llm, tp2 dp2, refined": (4, [*LLM, "model.llm.parallel.tp=2", "balance.refine_every=1"]),
    "full, dp3": (3, FULL),
    "full, dp4": (4, FULL),
    "full, tp2": (2, [*FULL, "model.llm.parallel.tp=2"]),
    "full, cp2": (2, [*FULL, "model.llm.parallel.cp=2"]),
    "full, pp2": (2, [*FULL, "model.llm.parallel.pp=2"]),
    "llm, pp2 dp2": (4, [*LLM, "model.llm.parallel.pp=2"]),
    "full, tp2 dp2": (4, [*FULL, "model.llm.parallel.tp=2"]),
    "full, dp2, encoder tp2": (2, [*FULL, "model.vision.parallel.tp=2"]),
    "full, decoupled": (3, [*FULL, "model.vision.parallel.ranks=[2]"]),
    "packed, decoupled": (4, [*PACKED, "model.vision.parallel.ranks=[0,1]"]),
    "full, decoupled dp2": (4, [*FULL, "model.vision.parallel.ranks=[0,1]"]),
    "full, projector apart": (4, [*FULL, "model.llm.parallel.tp=2", "model.projector.parallel.tp=2"]),
}

TILES = [
    *("data.max_tiles=4", "model.vision.image_size=16", "model.vision.patch_size=8", "trainer.micro_batch_tokens=256"),
]
"""The images of the data set are of several shapes; most have more than one tile of 16 x 16."""
TILED = {
    "tiles, padded": (1, TILES[:-1]),
    "tiles, full dp2": (2, [*FULL, *TILES]),
    "tiles, full tp2": (2, [*FULL, *TILES, "model.llm.parallel.tp=2"]),
    "tiles, packed decoupled": (2, [*PACKED, *TILES, "model.vision.parallel.ranks=[1]"]),
}
FEW = {
    "few, padded": (1, ["trainer.global_batch_size=2"]),
    "few, packed dp4": (4, [*PACKED, "trainer.global_batch_size=2"]),
    "few, full dp4": (4, [*FULL, "trainer.global_batch_size=2"]),
    "few, llm pp2 dp2": (4, [*LLM, "trainer.global_batch_size=1", "model.llm.parallel.pp=2"]),
    "one, padded": (1, ["trainer.global_batch_size=1"]),
}
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(rank_pool: Callable[[int], RankPool], tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Run:
    """Trains, from the beginning or from half a run; each once. Returns the run's folder."""

    @cache
    def train(name: str, after: str | None = None) -> Path:
        run_dir = tmp_path_factory.mktemp("run")
        nproc, overrides = (RUNS | TILED | FEW)[name]
        resume = [f"run.resume={train(after) / 'checkpoints' / f'step_{HALF:08}'}"] if after else []
        where = [f"run.dir={run_dir}", f"data.dir={data_dir}", *resume]
        rank_pool(nproc).run(command, "train", "+recipe=llava_sft", *_FIXED, *overrides, *where)
        return run_dir

    return train


@pytest.mark.parametrize("name", [name for name in RUNS if name != "padded"])
def test_learns_as_if_padded(name: str, run: Run) -> None:
    assert_same(run(name), run("padded"))


@pytest.mark.parametrize("name", [name for name in TILED if name != "tiles, padded"])
def test_tiles_are_packed_and_balanced(name: str, run: Run) -> None:
    assert_same(run(name), run("tiles, padded"))
    tiles = sum(record["images"] for record in records(run(name), "loss"))
    assert tiles > 1.2 * sum(record["images"] for record in records(run("padded"), "loss"))


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("few, packed dp4", "few, padded"),
        ("few, full dp4", "few, padded"),
        ("few, llm pp2 dp2", "one, padded"),
    ],
)
def test_ranks_without_a_sample_take_part(name: str, reference: str, run: Run) -> None:
    assert_same(run(name), run(reference))


@pytest.mark.parametrize(
    ("before", "after"),
    [("full, dp4", "full, dp2"), ("full, dp2", "full"), ("full", "full, dp3"), ("packed", "padded")],
)
def test_goes_on_with_another_number_of_ranks(before: str, after: str, run: Run) -> None:
    assert_same(run(after, before), run("padded"), first=HALF + 1)


def test_packing_pads_less(run: Run) -> None:
    packed, padded = ([record["padding"] for record in records(run(name), "loss")] for name in ("packed", "padded"))
    assert max(packed) < min(padded) / 2


def test_balance_is_better(run: Run) -> None:
    def worst(name: str, field: str) -> float:
        return sum(record[field] for record in records(run(name), "loss"))

    assert worst("llm, dp2", "balance/llm") < worst("packed, dp2", "balance/llm")
    assert worst("full, dp2", "balance/vision") <= worst("packed, dp2", "balance/vision")


def test_refined_costs_are_kept_and_taken_up(run: Run) -> None:
    """Costs of the second half of a resumed run begin with those of the first."""

    def state(run_dir: Path, step: int) -> Any:
        return json.loads((run_dir / "checkpoints" / f"step_{step:08}" / "manifest.json").read_text())["meta"][
            "balance"
        ]

    name = "full, dp2, refined"
    before, resumed = state(run(name), HALF), state(run(name, name), STEPS)
    assert len(before["costs"]) == HALF
    assert all(cost["llm_linear"] > 0 or cost["llm_quadratic"] > 0 for _, cost in before["costs"][2:])
    assert resumed["costs"][:HALF] == before["costs"]
    assert len(resumed["costs"]) == STEPS
    assert state(run("full, dp2"), STEPS) is None
