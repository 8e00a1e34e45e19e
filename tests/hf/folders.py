"""Folders in Hugging Face format for tests: tiny checkpoints with a tokenizer, and ways to break them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.hf.cases import CASES

Tensors = dict[str, torch.Tensor]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)


def add_tokenizer(folder: Path) -> None:
    """A word-level tokenizer of 128 tokens, as every case has; `<image>` is 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<image>", *(f"w{i}" for i in range(4, 128))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def make_folder(folder: Path, name: str, seed: int = 0, **options: Any) -> Any:
    """Saves a case with a tokenizer; returns its model."""
    model = CASES[name].model(seed)
    model.save_pretrained(folder, **options)
    add_tokenizer(folder)
    return model


def tensors_of(folder: Path) -> Tensors:
    """Everything in its safetensors files."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            found.update({name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118
    return found


def edit(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Changes the tensors of a folder with one file."""
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes `config.json`."""
    edit_json(folder / "config.json", change)


def edit_json(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file."""
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))
