"""A run is the same under every layout, and goes on, is scored and answers under any other."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import RankPool
from tests.training.commands import command
from tests.training.recipes import QUICK
from tests.training.runs import TOLERANCE, assert_same

STEPS, HALF = 12, 6
_FIXED = [
    *QUICK,
    *(f"trainer.steps={STEPS}", f"trainer.eval_every={HALF}", f"checkpoint.every={HALF}", "trainer.micro_batch_size=4"),
    *("optimizer.schedule=constant", "optimizer.warmup_steps=0", "optimizer.lr=3e-4"),
]

LAYOUTS = {
    "one process": (1, []),
    "encoder on rank 0": (2, ["model.vision.parallel.ranks=[0]"]),
    "encoder on rank 1": (2, ["model.vision.parallel.ranks=[1]"]),
    "cp2": (2, ["model.llm.parallel.cp=2"]),
    "tp2, encoder dp2": (2, ["model.llm.parallel.tp=2", "model.vision.parallel.dp=2"]),
    "pp2, encoder on both": (2, ["model.llm.parallel.pp=2", "model.vision.parallel.ranks=[0,1]"]),
    "tp2 beside the encoder": (3, ["model.llm.parallel.tp=2", "model.vision.parallel.ranks=[1]"]),
}
OTHERS = [name for name in LAYOUTS if name != "one process"]

Pool = Callable[[int], RankPool]
Run = Callable[..., Path]


@pytest.fixture(scope="module")
def run(rank_pool: Pool, tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Run:
    """Trains under a layout, from the beginning or from half a run; each once. Returns the run's folder."""

    @cache
    def train(name: str, after: str | None = None) -> Path:
        run_dir = tmp_path_factory.mktemp("run")
        nproc, layout = LAYOUTS[name]
        resume = [f"run.resume={train(after) / 'checkpoints' / f'step_{HALF:08}'}"] if after else []
        where = [f"run.dir={run_dir}", f"data.dir={data_dir}", *resume]
        rank_pool(nproc).run(command, "train", "+recipe=llava_sft", *_FIXED, *layout, *where)
        return run_dir

    return train


@pytest.mark.parametrize("name", OTHERS)
def test_a_layout_trains_as_one_process(name: str, run: Run) -> None:
    assert_same(run(name), run("one process"))


RESUMED = [
    ("encoder on rank 0", "one process"),
    ("encoder on rank 0", "tp2, encoder dp2"),
    ("encoder on rank 1", "cp2"),
    ("tp2, encoder dp2", "encoder on rank 0"),
    ("pp2, encoder on both", "tp2 beside the encoder"),
]


@pytest.mark.parametrize(("before", "after"), RESUMED)
def test_a_run_goes_on_under_another_layout(before: str, after: str, run: Run) -> None:
    assert_same(run(after, before), run("one process"), first=HALF + 1)


@pytest.fixture(scope="module")
def questions(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shard of a few held-out samples, `few.tar`, and an image of one, `image.png`."""
    folder = tmp_path_factory.mktemp("questions")
    with tarfile.open(data_dir / "val-00000.tar") as whole, tarfile.open(folder / "few.tar", "w") as few:
        for member in whole.getmembers()[:30]:
            few.addfile(member, whole.extractfile(member))
        image = next(member for member in whole.getmembers() if member.name.endswith(".png"))
        content = whole.extractfile(image)
        assert content is not None
        (folder / "image.png").write_bytes(content.read())
    return folder


@pytest.fixture(scope="module")
def ask(rank_pool: Pool, questions: Path) -> Callable[[str, Path], tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Scores and an answer of a run's last checkpoint under a layout."""

    @cache
    def under(name: str, run_dir: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        nproc, layout = LAYOUTS[name]
        shared = ["--checkpoint", str(run_dir), "--json", "trainer.eval_micro_batch_size=4", *layout]
        scores = rank_pool(nproc).run(command, "eval", "--data", str(questions / "few.tar"), *shared)
        question = ["--image", str(questions / "image.png"), "--prompt", "Which digit is top left?"]
        answers = rank_pool(nproc).run(command, "generate", *question, "--max-new-tokens", "6", *shared)
        assert not any([*scores[1:], *answers[1:]]), "only rank 0 prints"
        lines = [json.loads(line) for line in scores[0].splitlines()]
        return sorted(lines, key=lambda line: line["id"]), json.loads(answers[0])

    return under


ASKED = [
    ("encoder on rank 0", "one process"),
    ("encoder on rank 0", "tp2, encoder dp2"),
    ("encoder on rank 1", "tp2 beside the encoder"),
    ("cp2", "one process"),
    ("cp2", "encoder on rank 0"),
    ("tp2, encoder dp2", "pp2, encoder on both"),
    ("pp2, encoder on both", "encoder on rank 1"),
    ("one process", "cp2"),
]


@pytest.mark.parametrize(("trained", "asked"), ASKED)
def test_a_run_scores_and_answers_the_same_under_another_layout(trained: str, asked: str, run: Run, ask: Any) -> None:
    expected_scores, expected_answer = ask("one process", run("one process"))
    scores, answer = ask(asked, run(trained))
    assert answer == expected_answer
    assert len(answer["tokens"]) > 0
    assert [s["id"] for s in scores] == [s["id"] for s in expected_scores]
    assert len(scores) >= 10
    for one, other in zip(scores, expected_scores, strict=True):
        assert (one["label_tokens"], one["exact_match"]) == (other["label_tokens"], other["exact_match"])
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=TOLERANCE)
