"""A LLaVA put together from a CLIP and a Llama, and the spellings of its names, given back as they came."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loongforge.cli.main import main
from tests.components.hf_models import randomise
from tests.hf.cases import VISION
from tests.hf.folders import edit, make_folder, tensors_of
from tests.hf.test_export import assert_close, losses, their_losses, train, write_data

POSITIONS = "embeddings.position_ids"


def _on_the_hub(name: str) -> str:
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)


def _in_memory(name: str) -> str:
    name = name.removeprefix("language_model.") if "lm_head" in name else name
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
    return re.sub(r"^(vision_tower|multi_modal)", r"model.\1", name)


@pytest.mark.parametrize("spelling", [_on_the_hub, _in_memory])
def test_spellings_come_back(spelling: Any, tmp_path: Path) -> None:
    make_folder(tmp_path / "given", "llava")
    renamed = {spelling(name): tensor for name, tensor in tensors_of(tmp_path / "given").items()}
    save_file(renamed, tmp_path / "given" / "model.safetensors")
    assert main(["export", "--checkpoint", str(tmp_path / "given"), "--out", str(tmp_path / "out")]) == 0
    found = tensors_of(tmp_path / "out")
    assert set(found) == set(renamed)
    assert all(torch.equal(found[name], tensor) for name, tensor in renamed.items())


@pytest.mark.parametrize("kind", ["clip", "clip, both towers", "siglip"])
def test_components_from_folders_of_their_own(kind: str, tmp_path: Path, capsys: Any) -> None:
    """Exported as a whole, with the tower's unused layers, and nothing that transformers misses or does not know."""
    import transformers as hf

    clip = kind.startswith("clip")
    sizes = {**VISION, "num_hidden_layers": 4}
    if kind == "clip":
        tower = hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes))
    elif clip:
        text = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
        tower = hf.CLIPModel(hf.CLIPConfig(vision_config=sizes, text_config=text, projection_dim=8))
    else:
        tower = hf.SiglipVisionModel(hf.SiglipVisionConfig(**sizes))  # with its pooling head
    randomise(tower, 3).save_pretrained(tmp_path / "tower")
    if kind == "clip":  # a buffer of older transformers, of which a whole model has no need
        edit(tmp_path / "tower", lambda tensors: tensors.update({POSITIONS: torch.arange(5)[None]}))
    make_folder(tmp_path / "llm", "llama")
    make_folder(tmp_path / "shape", "llava" if clip else "llava siglip qwen2")
    assert main(["components", "from-hf", str(tmp_path / "shape")]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    data = write_data(tmp_path, True)
    parts = ["model.init_from=null", f"model.vision.init_from={tmp_path / 'tower'}", "model.vision.num_layers=4"]
    llm = [f"model.llm.init_from={tmp_path / 'llm'}", "model.llm.norm_eps=1e-5", "model.llm.qkv_bias=false"]
    llm.append("model.llm.tie_embeddings=false")
    freeze = ["model.vision.freeze=true", "model.llm.freeze=true", "model.vision.feature_layer=-2"]
    train(tmp_path / "mine.yaml", data, tmp_path / "run", *parts, *llm, *freeze)
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    found, given = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "tower")
    for name, tensor in given.items():
        if not name.startswith(("head", "text", "visual_projection", "logit_scale", POSITIONS)):
            assert torch.equal(found[f"vision_tower.{name.removeprefix('vision_model.')}"], tensor), name
    language = {f"language_model.{n}": t for n, t in tensors_of(tmp_path / "llm").items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in language.items())
    assert not any(name.endswith(POSITIONS) for name in found)
    assert_close(losses(tmp_path / "run", data, capsys), their_losses(tmp_path / "out", data, True))
