"""What `components from-hf` prints is always a recipe that composes and that our own checks accept."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loongforge.cli.main import main
from loongforge.cli.recipe_args import load_recipe
from loongforge.config.overrides import quoted
from loongforge.config.schema import Config
from loongforge.model.checks import check_model
from loongforge.parallel.layout import Layout
from tests.hf.cases import CASES
from tests.hf.folders import add_tokenizer, edit_config


def _text(**keys: Any) -> Callable[[dict[str, Any]], None]:
    """Keys of the language model, where a family puts them."""
    return lambda config: config.get("text_config", config).update(keys)


def _vision(**keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["vision_config"].update(keys)


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "as it is": lambda config: None,
    "hardly any context": _text(max_position_embeddings=2),
    "a short context": _text(max_position_embeddings=40),
    "a long context": _text(max_position_embeddings=1 << 20),
    "one layer, one group": _text(num_hidden_layers=1, num_key_value_heads=1, layer_types=None),
    "large words": _text(vocab_size=250_003, pad_token_id=None),
}
OF_TOWERS: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "windows in layers that are not there": ("qwen2.5_vl", _vision(fullatt_block_indexes=[1, 7, 15, 23, 31])),
    "windows in every layer": ("qwen2.5_vl", _vision(fullatt_block_indexes=[])),
    "large patches": ("qwen2_vl", _vision(patch_size=32, spatial_merge_size=4)),
    "a rest of pixels": ("llava", _vision(image_size=45)),
    "the last state": ("llava", lambda config: config.update(vision_feature_layer=-1)),
    "the first state": ("llava siglip qwen2", lambda config: config.update(vision_feature_layer=-3)),
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of all families without tensors, which `from-hf` does not read."""
    root = tmp_path_factory.mktemp("configs")
    for name, case in CASES.items():
        with torch.device("meta"):
            case.make().config.save_pretrained(root / name)
        save_file({}, root / name / "model.safetensors")
        add_tokenizer(root / name)
    return root


def _printed(folder: Path, capsys: Any) -> Config:
    assert main(["components", "from-hf", str(folder)]) == 0
    recipe = folder.parent / "printed.yaml"
    recipe.write_text(capsys.readouterr().out)
    overrides = [f"recipe={quoted(str(recipe))}", "data.train=none.jsonl"]
    config = load_recipe(argparse.Namespace(overrides=overrides, config_dir=[])).config
    check_model(config, Layout.from_model(config.model, 1))
    return config


def _pairs(*, others: bool) -> list[tuple[str, str]]:
    """Each family with some of the changes, in turn; or with the others."""
    return [(n, c) for i, n in enumerate(CASES) for j, c in enumerate(CHANGES) if bool((i - j) % 5) == others]


@pytest.mark.parametrize(("name", "change"), _pairs(others=False))
def test_printed_recipe_is_accepted(name: str, change: str, configs: Path, tmp_path: Path, capsys: Any) -> None:
    _printed(_copy(configs / name, tmp_path, CHANGES[change]), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), _pairs(others=True))
def test_all_printed_recipes(name: str, change: str, configs: Path, tmp_path: Path, capsys: Any) -> None:
    _printed(_copy(configs / name, tmp_path, CHANGES[change]), capsys)


@pytest.mark.parametrize("change", OF_TOWERS)
def test_odd_towers(change: str, configs: Path, tmp_path: Path, capsys: Any) -> None:
    name, edit = OF_TOWERS[change]
    _printed(_copy(configs / name, tmp_path, edit), capsys)


@pytest.mark.parametrize(("least", "most"), [(28 * 28, 28 * 28), (3136, 50000), (200_000, 12_845_056)])
def test_pixel_budgets(least: int, most: int, configs: Path, tmp_path: Path, capsys: Any) -> None:
    folder = _copy(configs / "qwen2_vl", tmp_path, _text(max_position_embeddings=50))
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": least, "max_pixels": most}))
    vision: Any = _printed(folder, capsys).model.vision
    assert (vision.min_pixels, vision.max_pixels) == (least, most)
    assert vision.image_size**2 <= most
    assert vision.image_size == min(7 * 28, int(most**0.5) // 28 * 28), "the largest that leaves room for text"


def _copy(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    folder = target / "a folder, of {odd} name=1"
    folder.mkdir()
    for file in source.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    edit_config(folder, change)
    return folder
