"""InternVL as a folder: what a recipe takes from it, losses as in transformers with its tiles, bit-identical export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from loongforge.checkpoint.families.base import ExportFacts
from loongforge.checkpoint.families.internvl import InternVL
from loongforge.cli.main import main
from loongforge.config.errors import UserError
from tests.hf.cases import CASES

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZES = {"square": [(60, 60)], "wide": [(150, 60)], "two": [(64, 130), (40, 40)], "none": []}
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'][0]['text'] }} </s>{% endgeneration %}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %} <IMG_CONTEXT> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endif %}{% endfor %}"
)
IMAGES = {
    "image_processor_type": "GotOcr2ImageProcessor",
    "size": {"height": 64, "width": 64},
    "image_mean": MEAN,
    "image_std": STD,
    "max_patches": 3,
    "min_patches": 1,
}


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<IMG_CONTEXT>", "<img>", "</img>", *(f"w{i}" for i in range(6, 128))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", extra_special_tokens=special
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return fast


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with tokenizer and processor."""
    found = tmp_path / "given"
    CASES["internvl"].model(0).save_pretrained(found)
    _tokenizer(found)
    (found / "processor_config.json").write_text(json.dumps({"image_seq_length": 4, "image_processor": IMAGES}))
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A sample for each kind of images."""
    rng, lines = np.random.default_rng(0), []
    for name, sizes in SIZES.items():
        files = [f"{name}{i}.png" for i in range(len(sizes))]
        for file, (width, height) in zip(files, sizes, strict=True):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / file)
        content = "w10 w11 <image> w12 <image>" if len(sizes) == 2 else "<image> " * len(sizes) + "w10 w20 w30"
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"w4{len(lines)} w50"}]
        lines.append(json.dumps({"id": name, "images": files, "messages": messages}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path / "data.jsonl"


@torch.no_grad()
def _their_losses(folder: Path, data: Path) -> dict[str, float]:
    """Through transformers' model, tokenizer and image processor; an image's tokens as its processor writes them
    (which itself needs torchvision)."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    images = settings["image_processor"]
    cut = GotOcr2ImageProcessorPil(**{k: v for k, v in images.items() if k not in ("image_processor_type",)})
    found = {}
    for line in data.read_text().splitlines():
        sample = json.loads(line)
        tiles = [cut(Image.open(data.parent / n), crop_to_patches=True, return_tensors="pt") for n in sample["images"]]
        text = sample["messages"][0]["content"]
        for image in tiles:
            context = "<IMG_CONTEXT> " * (settings["image_seq_length"] * int(image["num_patches"][0]))
            text = text.replace("<image>", f"<img> {context}</img>", 1)
        prompt = tokenizer(text)["input_ids"]
        answer = tokenizer(sample["messages"][1]["content"] + " </s>")["input_ids"]
        pixels = {"pixel_values": torch.cat([image["pixel_values"] for image in tiles])} if tiles else {}
        logits = model(input_ids=torch.tensor([prompt + answer]), **pixels).logits[0, len(prompt) - 1 : -1]
        found[sample["id"]] = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
    return found


def _losses(checkpoint: Path, data: Path, capsys: Any) -> dict[str, float]:
    capsys.readouterr()
    assert main(["eval", "--checkpoint", str(checkpoint), "--data", str(data), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return {line["id"]: line["loss"] for line in lines}


def test_from_a_folder_to_a_trained_one(folder: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["components", "from-hf", str(folder)]) == 0
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(capsys.readouterr().out)
    keys = yaml.safe_load(recipe.read_text())["data"]
    assert {key: keys[key] for key in ("image_token", "image_begin", "image_end", "placeholder", "max_tiles")} == {
        "image_token": "<IMG_CONTEXT>",
        "image_begin": "<img>",
        "image_end": "</img>",
        "placeholder": "<image>",
        "max_tiles": 3,
    }
    assert main(["export", "--checkpoint", str(folder), "--out", str(tmp_path / "copy")]) == 0
    given, copied = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "copy"))
    assert set(given) == set(copied)
    assert all(torch.equal(tensor, copied[name]) for name, tensor in given.items())
    arguments = [f"recipe={recipe}", f"data.train={data}", f"data.eval={data}", f"run.dir={tmp_path / 'run'}"]
    sizes = ["trainer.steps=2", "trainer.global_batch_size=4", "trainer.precision=fp32", "optimizer.lr=1e-3"]
    quiet = ["logging.tensorboard=false", "trainer.generate_samples=0", "launcher.nproc=1"]
    assert main(["train", *arguments, *sizes, *quiet]) == 0
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    trained = load_file(tmp_path / "out" / "model.safetensors")
    assert set(trained) == set(given)
    assert not any(torch.equal(tensor, trained[name]) for name, tensor in given.items())
    ours, theirs = _losses(tmp_path / "run", data, capsys), _their_losses(tmp_path / "out", data)
    assert set(ours) == set(theirs) == set(SIZES)
    assert max(abs(ours[name] - theirs[name]) for name in ours) < 1e-4, (ours, theirs)


def test_an_output_layer_that_the_config_does_not_mention(folder: Path) -> None:
    """Files of older transformers leave `tie_word_embeddings` out; the folder then decides."""
    hf = json.loads((folder / "config.json").read_text())
    del hf["tie_word_embeddings"]
    assert InternVL().components(hf, folder)["llm"].tie_embeddings  # type: ignore[attr-defined]
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert not InternVL().components(hf, folder)["llm"].tie_embeddings  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(vision_feature_select_strategy="full"), "vision_feature_select_strategy='full' is not covered"),
        (dict(vision_feature_layer=[-1, -2]), r"vision_feature_layer=\[-1, -2\] is not covered"),
        (dict(downsample_ratio=0.4), "downsample_ratio=0.4 is not covered"),
        (dict(projector_hidden_act="relu"), "projector_hidden_act='relu' is not covered"),
    ],
)
def test_settings_that_are_not_covered_are_named(change: dict[str, Any], words: str, folder: Path) -> None:
    hf = json.loads((folder / "config.json").read_text())
    with pytest.raises(UserError, match=words):
        InternVL().components({**hf, **change}, folder)


def test_tiles_without_the_whole_image_cannot_be_exported(folder: Path) -> None:
    hf = json.loads((folder / "config.json").read_text())
    from loongforge.config.schema import ModelConfig

    model = ModelConfig(**InternVL().components(hf, folder))
    facts = ExportFacts(tokenizer=None, image_token="<IMG_CONTEXT>", num_image_tokens=4, max_tiles=3, thumbnail=False)
    with pytest.raises(UserError, match=r"data\.thumbnail=false"):
        InternVL().files(model, facts)
