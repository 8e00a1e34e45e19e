"""From a Hugging Face folder to a recipe, a training run, and a folder that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from loongforge.cli.main import main
from tests.hf.folders import make_folder, tensors_of

SAMPLES = 6


def write_data(folder: Path, images: bool) -> Path:
    """JSONL in the words of the tokenizer, each sample with an image or two."""
    rng, lines = np.random.default_rng(0), []
    for number in range(SAMPLES):
        count = number % 3 if images else 0
        for i in range(count):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}_{i}.png")
        words = " ".join(f"w{rng.integers(4, 128)}" for _ in range(5))
        content = "<image> " * count + words
        answer = " ".join(f"w{rng.integers(4, 128)}" for _ in range(3))
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer + " "}]
        names = [f"{number}_{i}.png" for i in range(count)]
        lines.append(json.dumps({"id": str(number), "images": names, "messages": messages}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return folder / "data.jsonl"


def train(recipe: Path, data: Path, run: Path, *more: str) -> None:
    arguments = [f"recipe={recipe}", f"data.train={data}", f"data.eval={data}", f"run.dir={run}", "launcher.nproc=1"]
    sizes = ["trainer.steps=2", "trainer.global_batch_size=3", "trainer.precision=fp32", "optimizer.lr=1e-3"]
    quiet = ["logging.tensorboard=false", "trainer.generate_samples=0"]
    assert main(["train", *arguments, *sizes, *quiet, *more]) == 0


def losses(checkpoint: Path, data: Path, capsys: Any, *more: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["eval", "--checkpoint", str(checkpoint), "--data", str(data), "--json", *more]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    return {line["id"]: line["loss"] for line in lines}


@torch.no_grad()
def their_losses(folder: Path, data: Path, with_images: bool) -> dict[str, float]:
    """The same losses through transformers alone: its model, processor and chat template."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    cls = AutoModelForImageTextToText if with_images else AutoModelForCausalLM
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    processor = (AutoProcessor if with_images else AutoTokenizer).from_pretrained(folder)
    tokenizer = processor.tokenizer if with_images else processor
    found = {}
    for line in data.read_text().splitlines():
        sample = json.loads(line)
        text = tokenizer.apply_chat_template(sample["messages"], tokenize=False)
        prompt = tokenizer.apply_chat_template(sample["messages"][:1], tokenize=False)
        images = [Image.open(data.parent / name) for name in sample["images"]]
        options = {"images": images} if images else {}
        inputs = processor(text=text, return_tensors="pt", **options)
        begin = processor(text=prompt, return_tensors="pt", **options)["input_ids"].shape[1]
        inputs.pop("token_type_ids", None)
        logits = model(**inputs).logits[0, begin - 1 : -1]
        found[sample["id"]] = torch.nn.functional.cross_entropy(logits, inputs["input_ids"][0, begin:]).item()
    return found


def assert_close(found: dict[str, float], expected: dict[str, float]) -> None:
    assert set(found) == set(expected)
    assert max(abs(found[name] - expected[name]) for name in found) < 1e-4, (found, expected)


@pytest.mark.parametrize("name", ["llava", "qwen3"])
def test_from_a_folder_to_a_trained_one(name: str, tmp_path: Path, capsys: Any) -> None:
    """`from-hf`, training on it, export: transformers computes the losses that loongforge does, before and after."""
    images = name == "llava"
    folder = tmp_path / "given"
    make_folder(folder, name)
    data = write_data(tmp_path, images)
    assert main(["components", "from-hf", str(folder)]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["export", "--checkpoint", str(folder), "--out", str(tmp_path / "copy")]) == 0
    assert_close(losses(folder, data, capsys), their_losses(tmp_path / "copy", data, images))
    train(tmp_path / "mine.yaml", data, tmp_path / "run", "trainer.export_hf_every=1")
    out = tmp_path / "out"
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(out), "--max-shard-size", "200KB"]) == 0
    given, found = tensors_of(folder), tensors_of(out)
    assert {n: (t.shape, t.dtype) for n, t in given.items()} == {n: (t.shape, t.dtype) for n, t in found.items()}
    moved = {n for n, tensor in given.items() if not torch.equal(tensor, found[n])}
    kept = {n for n in given if "encoder.layers.2." in n or "post_layernorm" in n}
    assert moved == set(given) - kept
    assert_close(losses(tmp_path / "run", data, capsys), their_losses(out, data, images))
    exports = sorted(path.name for path in (tmp_path / "run" / "exports").iterdir())
    assert exports == ["step_00000001", "step_00000002"]
    last = tensors_of(tmp_path / "run" / "exports" / "step_00000002")
    assert all(torch.equal(last[n], tensor) for n, tensor in found.items())


def test_model_that_was_never_hugging_faces(tmp_path: Path, capsys: Any) -> None:
    """From random weights: layers above the features are left out, and transformers misses nothing."""
    make_folder(tmp_path / "given", "llava")
    data = write_data(tmp_path, True)
    assert main(["components", "from-hf", str(tmp_path / "given")]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    train(tmp_path / "mine.yaml", data, tmp_path / "run", "model.init_from=null", "model.vision.init_std=0.2")
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert_close(losses(tmp_path / "run", data, capsys), their_losses(tmp_path / "out", data, True))


def test_export_into_a_folder_that_is_not_empty_is_refused(tmp_path: Path, capsys: Any) -> None:
    make_folder(tmp_path / "given", "llama")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", "--checkpoint", str(tmp_path / "given"), "--out", str(tmp_path / "given")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_torn_export_never_looks_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of the weights: no folder of that name, and none that a later export stumbles over."""
    from loongforge.inference import export

    make_folder(tmp_path / "given", "llama")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(export, "_write_files", stop)
        assert main(["export", "--checkpoint", str(tmp_path / "given"), "--out", str(tmp_path / "out")]) == 130
    assert not (tmp_path / "out").exists()
    (tmp_path / ".out.writing").mkdir()
    assert main(["export", "--checkpoint", str(tmp_path / "given"), "--out", str(tmp_path / "out")]) == 0
    given, found = tensors_of(tmp_path / "given"), tensors_of(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())


def test_adapters_are_merged(tmp_path: Path, capsys: Any) -> None:
    make_folder(tmp_path / "given", "llama")
    data = write_data(tmp_path, False)
    assert main(["components", "from-hf", str(tmp_path / "given")]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    lora = "model.llm.lora={rank: 4, alpha: 16, targets: [q_proj, up_proj, down_proj]}"
    train(tmp_path / "mine.yaml", data, tmp_path / "run", lora, "optimizer.lr=3e-2")
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    given, found = tensors_of(tmp_path / "given"), tensors_of(tmp_path / "out")
    moved = {name.split(".")[-2] for name, tensor in given.items() if not torch.equal(tensor, found[name])}
    assert moved == {"q_proj", "up_proj", "down_proj"}
    assert_close(losses(tmp_path / "run", data, capsys), their_losses(tmp_path / "out", data, False))


def test_a_merge_is_rounded_once(tmp_path: Path, capsys: Any) -> None:
    """A run in bf16 exported in fp32: its weights and adapters merged, not merged and rounded to bf16."""
    make_folder(tmp_path / "given", "llama")
    data, run = write_data(tmp_path, False), tmp_path / "run"
    assert main(["components", "from-hf", str(tmp_path / "given")]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    lora = "model.llm.lora={rank: 4, alpha: 16, targets: [o_proj]}"
    train(tmp_path / "mine.yaml", data, run, lora, "optimizer.lr=3e-2", "trainer.precision=bf16")
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "out"), "--dtype", "fp32"]) == 0
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "adapter"), "--adapter"]) == 0
    given, found, adapter = (tensors_of(tmp_path / name) for name in ("given", "out", "adapter"))
    name = "model.layers.1.self_attn.o_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{matrix}.weight"].float() for matrix in "AB")
    whole = given[f"{name}.weight"].bfloat16().float() + 4 * b @ a
    assert (found[f"{name}.weight"] - whole).abs().max() < 1e-6
    assert b.abs().max() > 1e-3, "training has changed nothing"
