"""Hydra's habits: --cfg, --resolve, --package, --info, --config-dir."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from loongforge.cli.main import main

Capture = pytest.CaptureFixture[str]


def _shown(capsys: Capture, *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_cfg_job_keeps_interpolations_and_resolve_replaces_them(capsys: Capture) -> None:
    raw = yaml.safe_load(_shown(capsys, "train", "+recipe=llava_sft", "--cfg", "job"))
    assert raw["data"]["train"] == "${data.dir}/train-*.tar"
    assert raw["trainer"]["steps"] == 1400
    assert raw["logging"]["every"] == 10  # defaults of the schema are shown, too
    assert "hydra" not in raw
    resolved = yaml.safe_load(_shown(capsys, "train", "--cfg", "job", "--resolve", "+recipe=llava_sft"))
    assert resolved["data"]["train"] == "data/digits_vqa/train-*.tar"


def test_config_show_is_resolved(capsys: Capture) -> None:
    shown = yaml.safe_load(_shown(capsys, "config", "show", "+recipe=llava_sft", "trainer.steps=3"))
    assert shown["data"]["tokenizer"] == "data/digits_vqa/tokenizer"
    assert shown["trainer"]["steps"] == 3


def test_package(capsys: Capture) -> None:
    text = _shown(capsys, "train", "+recipe=llava_sft", "--cfg", "job", "-p", "model.llm")
    assert text.startswith("# @package model.llm\n")
    assert yaml.safe_load(text)["type"] == "llama"


def test_hydra_and_all(capsys: Capture) -> None:
    assert list(yaml.safe_load(_shown(capsys, "train", "+recipe=llava_sft", "--cfg", "hydra"))) == ["hydra"]
    both = yaml.safe_load(_shown(capsys, "train", "+recipe=llava_sft", "--cfg", "all"))
    assert {"hydra", "trainer"} <= set(both)


def test_info(capsys: Capture) -> None:
    text = _shown(capsys, "train", "--info", "+recipe=llava_sft", "llm=qwen3_tiny")
    order = [text.index(part) for part in ("optimizer/adamw", "llm/qwen3_tiny", "recipe/llava_sft", "command line")]
    assert order == sorted(order)
    assert "Groups are looked for in" not in _shown(capsys, "train", "--info", "defaults", "+recipe=llava_sft")


def test_a_wrong_config_is_shown_and_then_refused(capsys: Capture) -> None:
    assert main(["train", "+recipe=llava_sft", "+trainer.stps=3", "--cfg", "job"]) == 2
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["trainer"]["stps"] == 3
    assert "Did you mean 'trainer.steps'?" in shown.err


def test_config_dir(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "mine.yaml").write_text("defaults: [llama_tiny, _self_]\nnum_layers: 9\n")
    argv = ["config", "show", "+recipe=llava_sft", "llm=mine", "-cd", str(tmp_path), "-p", "model.llm"]
    assert yaml.safe_load(_shown(capsys, *argv))["num_layers"] == 9
