"""Tensors that nothing here depends on are still a checkpoint's: kept bit by bit, and missed where they are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.cli.main import main
from tests.components.hf_models import randomise
from tests.hf.cases import CASES, PINPOINTS, TEXT, VISION, _internvl
from tests.hf.folders import Tensors, add_tokenizer, edit, tensors_of
from tests.support.tiny import IMAGE_TOKEN


def _siglip_with_head() -> Any:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    towers = dict(vision_config=SiglipVisionConfig(**VISION), text_config=LlamaConfig(**TEXT))
    choice = dict(vision_feature_layer=-2, vision_feature_select_strategy="full", image_seq_length=4)
    return LlavaForConditionalGeneration(LlavaConfig(**towers, image_token_index=IMAGE_TOKEN, **choice))


def _internvl_below_the_top() -> Any:
    model = _internvl(use_mean_pooling=False)
    model.config.vision_feature_layer = -2
    return model


def _next_with_tied_text() -> Any:
    """Only the text section says that embeddings are tied, which transformers does not go by."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    towers = dict(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT, tie_word_embeddings=True))
    config = LlavaNextConfig(**towers, image_token_index=IMAGE_TOKEN, image_grid_pinpoints=PINPOINTS)
    return LlavaNextForConditionalGeneration(config)


MODELS: dict[str, Any] = {
    "clip": CASES["llava"].make,
    "siglip": _siglip_with_head,
    "internvit": _internvl_below_the_top,
    "next": _next_with_tied_text,
}
LOST = {
    "a layer of clip": ("clip", "vision_tower.encoder.layers.2."),
    "last norm of clip": ("clip", "vision_tower.post_layernorm."),
    "a layer of siglip": ("siglip", "vision_tower.encoder.layers.2."),
    "head of siglip": ("siglip", "vision_tower.head."),
    "a piece of the head": ("siglip", "vision_tower.head.attention.in_proj_bias"),
    "a layer of internvit": ("internvit", "vision_tower.encoder.layer.2."),
    "last norm of internvit": ("internvit", "vision_tower.layernorm."),
    "encoder": ("clip", "vision_tower."),
    "projector": ("clip", "multi_modal_projector."),
    "decoder": ("clip", "language_model.model.layers."),
    "output layer": ("clip", "language_model.lm_head."),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    for name, make in MODELS.items():
        torch.manual_seed(0)
        randomise(make(), 0).save_pretrained(root / name)
        add_tokenizer(root / name)
    return root


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("name", MODELS)
def test_whole_checkpoint_is_given_back(name: str, whole: Path, tmp_path: Path) -> None:
    assert main(["export", "--checkpoint", str(whole / name), "--out", str(tmp_path / "out")]) == 0
    _assert_same(whole / name, tmp_path / "out")


@pytest.mark.parametrize("lost", LOST)
def test_lost_sub_tree_is_missed(lost: str, whole: Path, tmp_path: Path, capsys: Any) -> None:
    name, prefix = LOST[lost]
    folder, out = _copy(whole / name, tmp_path / "folder"), tmp_path / "out"

    def lose(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(prefix)]:
            del tensors[key]

    edit(folder, lose)
    assert main(["export", "--checkpoint", str(folder), "--out", str(out)]) == 2
    assert f"{folder}/model.safetensors has no tensor '{prefix}" in capsys.readouterr().err
    assert not out.exists()


def test_buffers_of_older_checkpoints_are_kept(whole: Path, tmp_path: Path) -> None:
    """transformers 5 saves neither and ignores both; a folder that has them gets them back."""
    folder, out = _copy(whole / "clip", tmp_path / "folder"), tmp_path / "out"

    def add(tensors: Tensors) -> None:
        tensors["vision_tower.embeddings.position_ids"] = torch.arange(5)[None]
        tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(8)

    edit(folder, add)
    for kind, number in (("auto", torch.float32), ("bf16", torch.bfloat16)):
        out = tmp_path / kind
        assert main(["export", "--checkpoint", str(folder), "--out", str(out), "--dtype", kind]) == 0
        found = tensors_of(out)
        assert torch.equal(found["vision_tower.embeddings.position_ids"], torch.arange(5)[None])
        assert found["vision_tower.embeddings.patch_embedding.weight"].dtype == number
    _assert_same(folder, tmp_path / "auto")
    from transformers import AutoModelForImageTextToText

    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "auto", output_loading_info=True)
    assert not info["missing_keys"]


def _assert_same(given: Path, found: Path) -> None:
    expected, tensors = tensors_of(given), tensors_of(found)
    assert set(expected) == set(tensors)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name], tensor), name
