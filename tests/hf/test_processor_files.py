"""What a recipe changes of the processing of images reaches the exported files: transformers makes the same pixels."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loongforge.checkpoint.families.processor_files import image_processor_settings, video_processor_settings
from loongforge.checkpoint.families.qwen_vl_files import processor_files
from loongforge.cli.checkpoints import checkpoint_config
from loongforge.cli.main import main
from loongforge.components.vision.qwen_vl.config import QwenViTConfig
from loongforge.config.schema import Config
from loongforge.data.any_size import AnySizeImageProcessor
from tests.hf.folders import make_folder
from tests.hf.test_internvl import IMAGES as INTERNVL_IMAGES

OLD = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 200_000, "mine": 1}
SIZE = {"shortest_edge": 784, "longest_edge": 50_000}
FILES: dict[str, dict[str, dict[str, Any]]] = {
    "none": {},
    "as transformers 4 writes": {"preprocessor_config.json": OLD},
    "both spellings": {"preprocessor_config.json": {**OLD, "size": SIZE}},
    "as transformers 5 writes": {
        "processor_config.json": {
            "processor_class": "Qwen2VLProcessor",
            "image_processor": {"image_processor_type": "Qwen2VLImageProcessor", "size": SIZE, "mine": 1},
            "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", "size": SIZE, "mine": 1},
        }
    },
}
CHANGED = ["model.vision.min_pixels=8000", "model.vision.max_pixels=20000", "model.vision.max_video_pixels=120000"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "qwen"
    make_folder(folder, "qwen2_vl")
    return folder


def _folder(base: Path, target: Path, files: dict[str, dict[str, Any]]) -> Path:
    target.mkdir()
    for file in base.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    for name, content in files.items():
        (target / name).write_text(json.dumps(content))
    return target


def _config(folder: Path, *changes: str) -> Config:
    return checkpoint_config(argparse.Namespace(checkpoint=str(folder), overrides=list(changes), config_dir=[]))


def _differences(config: Config, folder: Path) -> list[float]:
    """The largest difference between our pixels and those of transformers' processor, for images of some sizes."""
    from transformers import AutoImageProcessor

    ours = AnySizeImageProcessor(config.model.vision, config.model.projector)  # type: ignore[arg-type]
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    rng, found = np.random.default_rng(0), []
    for width, height in ((40, 30), (150, 90), (300, 420)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        png = io.BytesIO()
        image.save(png, "PNG")
        pixels = ours.normalise(ours.tiles(png.getvalue()))
        expected = theirs(images=image, return_tensors="np")["pixel_values"]
        found.append(float(np.abs(pixels - expected).max()) if pixels.shape == expected.shape else np.inf)
    return found


@pytest.mark.parametrize("kept", FILES)
@pytest.mark.parametrize("changes", [[], CHANGED], ids=["as it is", "changed"])
def test_transformers_makes_the_same_pixels(kept: str, changes: list[str], base: Path, tmp_path: Path) -> None:
    folder, out = _folder(base, tmp_path / "given", FILES[kept]), tmp_path / "out"
    config = _config(folder, *changes)
    if kept != "none" and not changes:
        assert max(_differences(config, folder)) < 1e-5, "the recipe is the folder's"
    assert main(["export", "--checkpoint", str(folder), "--out", str(out), *changes]) == 0
    assert max(_differences(config, out)) < 1e-5
    again: Any = _config(out).model.vision
    vision: Any = config.model.vision
    for key in ("min_pixels", "max_pixels", "min_video_pixels", "max_video_pixels"):
        assert getattr(again, key) == getattr(vision, key), key
    for name, content in FILES[kept].items():
        found = json.loads((out / name).read_text())
        assert (found == content) is (not changes)
        assert "mine" in found.get("image_processor", found), "what else the folder said is kept"


def test_video_processor_of_a_folder_with_one_file(base: Path, tmp_path: Path) -> None:
    """As in transformers: the image processor's file is the video processor's where that has none."""
    folder = _folder(base, tmp_path / "given", FILES["as transformers 4 writes"])
    vision = _config(folder).model.vision
    assert isinstance(vision, QwenViTConfig)
    assert (vision.min_video_pixels, vision.max_video_pixels) == (3136, 200_000)
    (folder / "video_preprocessor_config.json").write_text(json.dumps({"size": SIZE}))
    vision = _config(folder).model.vision
    assert isinstance(vision, QwenViTConfig)
    assert (vision.min_pixels, vision.max_video_pixels) == (3136, 50_000)


def test_a_new_folder_has_a_video_processor(tmp_path: Path) -> None:
    from tests.support.qwen import qwen_vision

    vision = qwen_vision("qwen2", min_pixels=784, max_pixels=1568, min_video_pixels=3136, max_video_pixels=6272)
    for name, content in processor_files(vision, "Qwen2VLProcessor").items():
        (tmp_path / name).write_text(json.dumps(content))
    assert image_processor_settings(tmp_path)["size"] == {"shortest_edge": 784, "longest_edge": 1568}
    assert video_processor_settings(tmp_path)["size"] == {"shortest_edge": 3136, "longest_edge": 6272}


@pytest.mark.parametrize("nested", [False, True])
def test_tiles_of_internvl(nested: bool, tmp_path: Path) -> None:
    """`data.max_tiles` is a setting of the recipe, which the processor has to follow."""
    folder = tmp_path / "given"
    make_folder(folder, "internvl")
    file = "processor_config.json" if nested else "preprocessor_config.json"
    images = INTERNVL_IMAGES
    (folder / file).write_text(json.dumps({"image_processor": images} if nested else images))
    assert _config(folder).data.max_tiles == images["max_patches"] == 3
    for tiles in (3, 5):
        out = tmp_path / f"out{tiles}"
        assert main(["export", "--checkpoint", str(folder), "--out", str(out), f"data.max_tiles={tiles}"]) == 0
        assert image_processor_settings(out)["max_patches"] == tiles
        written = json.loads((out / file).read_text())
        assert written.get("image_processor", written) == {**images, "max_patches": tiles}
        assert (out / file).read_bytes() == (folder / file).read_bytes() or tiles == 5
