"""Composition: every way to name a recipe, who wins, and hydra's grammar."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from loongforge.config.compose import compose
from loongforge.config.errors import UserError
from loongforge.config.folders import recipes_dir

_MINE = """\
defaults:
  - /recipe: llava_sft
  - override /llm@model.llm: qwen3_tiny
  - _self_
trainer:
  steps: 7
"""


@pytest.mark.parametrize(
    "override", ["recipe=llava_sft", "+recipe=llava_sft", "++recipe=llava_sft", "recipe=llava_sft.yaml"]
)
def test_spellings_of_a_recipe(override: str) -> None:
    tree = compose([override]).tree
    assert tree["name"] == "llava_sft"
    assert tree["model"]["vision"]["type"] == "clip_vit"
    assert "hydra" not in tree
    assert "recipe" not in tree


def test_recipe_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my recipes"
    folder.mkdir()
    text = (recipes_dir() / "llava_sft.yaml").read_text()
    (folder / "llava_sft.yaml").write_text(text.replace("steps: 1400", "steps: 12").replace("name: llava_sft", ""))
    monkeypatch.chdir(tmp_path)
    for override in (
        "recipe=my recipes/llava_sft.yaml",
        f"+recipe={folder}/llava_sft",
        "+recipe='my recipes/llava_sft.yaml'",
    ):
        tree = compose([override]).tree
        assert (tree["trainer"]["steps"], tree["name"]) == (12, "llava_sft")


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(_MINE)
    tree = compose([f"recipe={tmp_path}/mine.yaml"]).tree
    assert tree["trainer"]["steps"] == 7
    assert tree["trainer"]["global_batch_size"] == 32
    assert tree["model"]["llm"]["qk_norm"] is True


@pytest.mark.parametrize("place", ["mine.yaml", "recipe/mine.yaml", "recipes/mine.yaml"])
def test_recipes_and_groups_of_a_config_dir(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(_MINE.replace("qwen3_tiny", "wide"))
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "wide.yaml").write_text("type: llama\nhidden_size: 256\n")
    composed = compose(["+recipe=mine"], config_dirs=[tmp_path])
    assert composed.tree["model"]["llm"]["hidden_size"] == 256
    assert composed.tree["name"] == "llava_sft"  # of the recipe it builds on
    assert composed.origin("model.llm.hidden_size") == f"{tmp_path}/llm/wide.yaml:2"
    assert composed.origin("trainer.steps") == f"{tmp_path / place}:6"


def test_a_recipe_wins_over_the_primary_config_and_over_groups(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "backend: cpu\noptimizer: {lr: 0.25}\ndefaults: [{/llm@model.llm: llama_tiny}]\nmodel: {llm: {num_layers: 2}}\n"
    )
    tree = compose([f"recipe={tmp_path}/mine.yaml"]).tree
    assert tree["backend"] == "cpu"  # configs/config.yaml says auto
    assert tree["optimizer"]["lr"] == 0.25  # configs/optimizer/adamw.yaml says 5e-4
    assert tree["model"]["llm"]["num_layers"] == 2  # configs/llm/llama_tiny.yaml says 4


def test_the_command_line_wins_over_the_recipe() -> None:
    overrides = ["trainer.steps=3", "+recipe=llava_sft", "+optimizer.lr=1", "++data.shuffle=false", "~checkpoint.every"]
    tree = compose(overrides).tree
    assert tree["trainer"]["steps"] == 3
    assert tree["optimizer"]["lr"] == 1
    assert tree["data"]["shuffle"] is False
    assert "every" not in tree["checkpoint"]


@pytest.mark.parametrize("override", ["llm=qwen3_tiny", "+llm=qwen3_tiny", "llm@model.llm=qwen3_tiny"])
def test_shorthands_of_components(override: str) -> None:
    assert compose(["recipe=llava_sft", override]).tree["model"]["llm"]["qk_norm"] is True


def test_a_component_is_added_and_taken_away() -> None:
    both = compose(["recipe=llm_pretrain", "vision=siglip_vit_tiny", "projector=linear"]).tree
    assert (both["model"]["vision"]["type"], both["model"]["projector"]["type"]) == ("siglip_vit", "linear")
    assert "vision" not in compose(["recipe=llava_sft", "~vision"]).tree["model"]


def test_interpolations_are_resolved_and_kept_raw() -> None:
    composed = compose(["recipe=llava_sft", "data.dir=/d"])
    assert composed.tree["data"]["train"] == "/d/train-*.tar"
    assert composed.raw["data"]["train"] == "${data.dir}/train-*.tar"
    assert composed.origin("data.train") == "configs/data/digits_vqa.yaml:4"
    assert composed.origin("data.dir") == "override 'data.dir=/d'"


def test_shard_patterns_need_no_quotes() -> None:
    tree = compose(["recipe=llava_sft", "data.train=/d/x-{000..010}.tar", "data.eval=/d/{a,b}.jsonl"]).tree
    assert (tree["data"]["train"], tree["data"]["eval"]) == ("/d/x-{000..010}.tar", "/d/{a,b}.jsonl")


def test_plugin_files_are_found_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text("plugins: [beside.py, here.py, package.module]\n")
    for file in ("sub/beside.py", "here.py"):
        (tmp_path / file).touch()
    plugins = compose(["recipe=sub/mine.yaml"]).tree["plugins"]
    assert plugins == [str(tmp_path / "sub" / "beside.py"), str(tmp_path / "here.py"), "package.module"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "no recipe given.*llava_sft"),
        (["recipe=llava_stf"], "Did you mean 'llava_sft'.*llm_pretrain"),
        (["recipe=gone/mine.yaml"], "no such file.*gone does not exist"),
        (["recipe=llava_sft", "recipe=llm_pretrain"], "two recipes"),
        (["recipe=llava_sft", "llm=qwen3_tinny"], "llm=qwen3_tinny is not known.*Did you mean 'qwen3_tiny'.*llama2_7b"),
        (["recipe=llava_sft", "data=digit_vqa"], "data=digit_vqa.*Did you mean 'digits_vqa'"),
        (["recipe=llava_sft", "trainer.steps=[1", "nonsense"], "(?s)steps=.1.*nonsense"),
        (["recipe=llava_sft", "trainer.steps=1,2"], "add -m"),
        (["recipe=llava_sft", "~trainer.stepps"], "stepps.*does not exist"),
        (["recipe=llava_sft", "hydra.run.dir=x"], "Use run.dir"),
    ],
)
def test_mistakes(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose(overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: {steps: 1", "mine.yaml: not a readable recipe: line 1"),
        ("a: 1\na: 2\n", "line 2: found duplicate key a"),
        ("- 1\n", "not a mapping"),
        ("hydra: {run: {dir: x}}\n", "`hydra:` has no effect"),
        ("defaults: [{/lm@model.llm: llama_tiny}]\n", "'lm/llama_tiny' is not known.*Did you mean 'llm/llama_tiny'"),
        ("defaults: [{/llm@model.llm: lama_tiny}]\n", "In 'recipe/mine.*Did you mean 'llama_tiny'"),
    ],
)
def test_broken_recipe_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        compose([f"recipe={tmp_path}/mine.yaml"])


def test_config_dir_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        compose(["recipe=llava_sft"], config_dirs=[tmp_path / "gone"])


def test_bare_name_of_a_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipes_dir() / "llava_sft.yaml", "mine.yaml")
    with pytest.raises(UserError, match=r"recipe=\./mine\.yaml"):
        compose(["recipe=mine"])
    assert compose([f"recipe=.{os.sep}mine.yaml"]).tree["name"] == "llava_sft"
