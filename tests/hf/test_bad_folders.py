"""What is wrong with a folder is one message that names tensor and file; exit code 2, and nothing is written."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loongforge.cli.main import main
from tests.hf.folders import Tensors, edit, edit_config, edit_json, make_folder

Q = "model.layers.1.self_attn.q_proj.weight"
UP = "model.layers.2.mlp.up_proj.weight"
ABOVE = "vision_tower.encoder.layers.2.mlp.fc1.bias"
LAST = "vision_tower.post_layernorm.weight"


def _tensors(change: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, change)


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, lambda config: config.update(changes))


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1000)


def _only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(1))


def _pickle_in_disguise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}) * 100)


def _transpose(tensors: Tensors) -> None:
    tensors[UP] = tensors[UP].T.contiguous()


def _other_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


def _header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Another header over the same bytes."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        text = json.dumps(change(header) or header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return damage


def _more_bytes(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"more")


def _integer_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].int()


def _short_table(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1].clone()


def _share_bytes(header: dict[str, Any]) -> None:
    header[Q]["data_offsets"] = header[UP]["data_offsets"]


def _torn(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def _template_in_the_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", lambda found: found.update(chat_template="{% if x %}"))


FILE = r".*model\.safetensors"
FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "missing": ("llama", _tensors(lambda t: t.pop(Q)), rf"{FILE} has no tensor '{Q}'"),
    "extra": ("llama", _tensors(lambda t: t.update(extra=t[Q].clone())), f"{FILE}: tensor 'extra' has no place"),
    "extra layer": (
        "llama",
        _tensors(lambda t: t.update({Q.replace("1", "9"): t[Q].clone()})),
        f"{FILE}: tensor 'model.layers.9.self_attn.q_proj.weight' has no place",
    ),
    "shape": ("llama", _tensors(_transpose), rf"{FILE}: tensor '{UP}' has shape \[64, 96\], .* \[96, 64\]"),
    "torn": ("llama", _truncate, rf"{FILE} is torn: tensor '.*' ends at byte \d+, the file at \d+"),
    "family": ("llama", _config(model_type="gpt2"), "model_type='gpt2' is of no supported family; supported: .*llama"),
    "type of one": ("llama", _tensors(lambda t: t.update({Q: t[Q].half()})), f"{FILE}: tensor '{Q}' has type F16"),
    "integers": ("llama", _tensors(lambda t: t.update({Q: t[Q].int()})), f"{FILE}: tensor '{Q}' has type I32"),
    "untied": ("llama tied", _tensors(_other_head), f"{FILE}: tensor 'lm_head.weight' differs from 'model.embed_tok"),
    "no head": ("llama", _tensors(lambda t: t.pop("lm_head.weight")), "has no tensor 'lm_head.weight'"),
    "head of integers": ("llama tied", _tensors(_integer_head), f"{FILE}: tensor 'lm_head.weight' differs from"),
    "short table": ("llama", _tensors(_short_table), f"{FILE}: tensor 'model.embed_tokens.weight' .* vocab_size=128"),
    "header of another kind": ("llama", _header(lambda h: [1]), f"{FILE} is no whole safetensors file"),
    "offsets": ("llama", _header(lambda h: h[Q].update(data_offsets=[0, 1, 2])), f"{FILE} is no whole"),
    "overlap": ("llama", _header(_share_bytes), f"{FILE}: tensor '.*' begins at byte"),
    "more bytes": ("llama", _more_bytes, f"{FILE} has 4 bytes that no tensor has"),
    "missing above the features": ("llava", _tensors(lambda t: t.pop(ABOVE)), f"{FILE} has no tensor '{ABOVE}'"),
    "shape above the features": (
        "llava",
        _tensors(lambda t: t.update({ABOVE: t[ABOVE][1:].clone()})),
        rf"{FILE}: tensor '{ABOVE}' has shape \[127\], .* \[128\]",
    ),
    "type above the features": (
        "llava",
        _tensors(lambda t: t.update({ABOVE: t[ABOVE].half()})),
        f"{FILE}: tensor '{ABOVE}' has type F16",
    ),
    "last norm": ("llava", _tensors(lambda t: t.pop(LAST)), f"{FILE} has no tensor '{LAST}'"),
    "heads": ("llama", _config(num_key_value_heads=3), "num_heads=4 is not a multiple of num_kv_heads=3"),
    "features": ("llava", _config(vision_feature_layer=-9), "feature_layer=-9 does not exist"),
    "pickles": ("llama", _only_pickles, r"pytorch_model\.bin is a pickle"),
    "disguise": ("llama", _pickle_in_disguise, f"{FILE} is no whole safetensors file"),
    "bias": ("llama", _config(attention_bias=True), "attention_bias=True is not covered"),
    "activation": ("llama", _config(hidden_act="relu"), "hidden_act='relu' is not covered"),
    "not JSON": ("llama", lambda folder: (folder / "config.json").write_text("{"), "cannot read .*config.json") ,
    "projector": ("llava", _config(projector_hidden_act="relu"), "projector_hidden_act='relu' is not covered"),
    "all features": ("llava", _config(vision_feature_select_strategy="full"), "vision_feature_select_strategy='full'"),
    "generation config": ("llama", _torn("generation_config.json", '{"eos_token_id": '), "cannot read .*generation_c"),
    "tokenizer config": ("llama", _torn("tokenizer_config.json", '{"eos_token": "</'), "cannot read .*tokenizer_c"),
    "tokenizer": ("llama", _torn("tokenizer.json", "{"), r"cannot read .*/tokenizer\.json"),
    "special tokens": ("llama", _torn("special_tokens_map.json", "[]"), r"special_tokens_map\.json holds no JSON"),
    "template": ("llama", _torn("chat_template.jinja", "{{ a }}\n{% for m in"), r"chat_template\.jinja: .* in line 2"),
    "template as JSON": ("llama", _torn("chat_template.json", '{"chat'), r"cannot read .*chat_template\.json"),
    "template in the tokenizer": ("llama", _template_in_the_tokenizer, r"tokenizer_config\.json: the chat template"),
    "image processor": ("llava", _torn("preprocessor_config.json", '{"size"'), "cannot read .*preprocessor_config"),
    "processor": ("llava", _torn("processor_config.json", '{"size"'), "cannot read .*/processor_config"),
    "no settings": ("llava", _torn("processor_config.json", '{"image_processor": 3}'), "image_processor=3"),
    "video processor": ("llava", _torn("video_preprocessor_config.json", "{"), "cannot read .*video_preprocessor"),
    "tokens of an image": ("internvl", _config(image_seq_length=5), r"/config\.json: image_seq_length=5, .* must be 4"),
    "tokens in the processor": (
        "internvl",
        _torn("processor_config.json", '{"image_seq_length": 256}'),
        r"/processor_config\.json: image_seq_length=256, but 4 x 4 patches .* must be 4",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name in ("llama", "llama tied", "llava", "internvl"):
        make_folder(folder / name, name)
    return folder


@pytest.mark.parametrize("fault", FAULTS)
def test_one_message_names_tensor_and_file(fault: str, whole: Path, tmp_path: Path, capsys: Any) -> None:
    name, damage, words = FAULTS[fault]
    folder, out = tmp_path / "folder", tmp_path / "out"
    shutil.copytree(whole / name, folder)
    damage(folder)
    assert main(["export", "--checkpoint", str(folder), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == [folder]


def test_shard_that_is_missing_is_named(whole: Path, tmp_path: Path, capsys: Any) -> None:
    make_folder(tmp_path / "folder", "llama", max_shard_size="100KB")
    lost = sorted((tmp_path / "folder").glob("*.safetensors"))[1]
    lost.unlink()
    assert main(["export", "--checkpoint", str(tmp_path / "folder"), "--out", str(tmp_path / "out")]) == 2
    assert lost.name in capsys.readouterr().err


def test_tensor_of_a_shard_that_the_index_omits_is_named(tmp_path: Path, capsys: Any) -> None:
    make_folder(tmp_path / "folder", "llama", max_shard_size="100KB")
    index = tmp_path / "folder" / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    file = table["weight_map"].pop(Q)
    index.write_text(json.dumps(table))
    assert main(["export", "--checkpoint", str(tmp_path / "folder"), "--out", str(tmp_path / "out")]) == 2
    assert f"{file}: tensor '{Q}' is not in {index.name}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_norms_of_another_type_are_fine(whole: Path, tmp_path: Path) -> None:
    """Matrices in bf16, norms in fp32: every tensor keeps its type, bit by bit."""
    folder = tmp_path / "folder"
    shutil.copytree(whole / "llama", folder)

    def halve(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor if tensor.ndim == 1 else tensor.bfloat16()

    edit(folder, halve)
    assert main(["export", "--checkpoint", str(folder), "--out", str(tmp_path / "out")]) == 0
    from tests.hf.folders import tensors_of

    given, found = tensors_of(folder), tensors_of(tmp_path / "out")
    assert {name: t.dtype for name, t in given.items()} == {name: t.dtype for name, t in found.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())


def test_recipe_with_another_epsilon_is_refused(whole: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--checkpoint", str(whole / "llama"), "--out", str(tmp_path / "out"), "model.llm.norm_eps=1e-4"]
    assert main(["export", *arguments]) == 2
    assert "model.llm.norm_eps=0.0001, but" in (error := capsys.readouterr().err) and "says 1e-05" in error
    assert not (tmp_path / "out").exists()
