"""`eval` and `generate` on a Hugging Face folder, under one process and two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loongforge.cli.main import main
from tests.hf.folders import make_folder
from tests.hf.test_export import assert_close, losses, their_losses, write_data

TP2 = ("launcher.nproc=2", "model.llm.parallel.tp=2", "model.vision.parallel.tp=2", "model.projector.parallel.tp=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    make_folder(folder, "llava", max_shard_size="200KB")
    return folder


def test_eval_equals_transformers(folder: Path, tmp_path: Path, capfd: Any) -> None:
    data = write_data(tmp_path, True)
    out = tmp_path / "copy"
    assert main(["export", "--checkpoint", str(folder), "--out", str(out)]) == 0
    expected = their_losses(out, data, True)
    assert_close(losses(folder, data, capfd), expected)
    assert_close(losses(folder, data, capfd, *TP2), expected)


def test_generate_from_a_folder(folder: Path, tmp_path: Path, capfd: Any) -> None:
    Image.new("RGB", (50, 40), (200, 30, 90)).save(tmp_path / "a.png")
    arguments = ["--checkpoint", str(folder), "--image", str(tmp_path / "a.png"), "--prompt", "w5 w6", "--json"]
    assert main(["generate", *arguments, "--max-new-tokens", "4"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert 0 < len(json.loads(lines[-1])["tokens"]) <= 4


def test_images_may_be_smaller_than_the_checkpoint_says(tmp_path: Path) -> None:
    make_folder(tmp_path / "given", "qwen2_vl")
    arguments = ["--checkpoint", str(tmp_path / "given"), "--out", str(tmp_path / "out")]
    assert main(["export", *arguments, "model.vision.max_pixels=12544"]) == 0
