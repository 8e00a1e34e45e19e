from __future__ import annotations

from pathlib import Path

import pytest

from loongforge.config.errors import UserError
from loongforge.data.tokenizer import load_tokenizer
from tests.data.conftest import chat


def test_autotokenizer_and_a_second_save_give_the_same(digits: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "Where is the 7? été 1234 USER: x ASSISTANT: y</s><image>"
    ours = load_tokenizer(digits / "tokenizer")
    ours.save_pretrained(tmp_path / "saved")
    for other in (AutoTokenizer.from_pretrained(digits / "tokenizer"), load_tokenizer(tmp_path / "saved")):
        assert other.encode(text) == ours.encode(text)
        assert other.apply_chat_template(chat(), tokenize=False) == ours.apply_chat_template(chat(), tokenize=False)
        assert (other.eos_token, other.pad_token, other.image_token) == ("</s>", "<pad>", "<image>")
    assert ours.decode(ours.encode(text)) == text
    assert len(ours) == 512


def test_special_tokens_come_first_and_digits_are_single(digits: Path) -> None:
    tokenizer = load_tokenizer(digits / "tokenizer")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<s>", "</s>", "<image>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("4711")) == ["4", "7", "1", "1"]


def test_chat_template_text(digits: Path) -> None:
    tokenizer = load_tokenizer(digits / "tokenizer")
    parts = [{"type": "image"}, {"type": "text", "text": "Which digit is shown?"}]
    expected = "USER: <image>\nWhich digit is shown? ASSISTANT: 7</s>"
    assert tokenizer.apply_chat_template(chat(), tokenize=False) == expected
    assert tokenizer.apply_chat_template(chat(parts), tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(chat()[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == expected.removesuffix("7</s>")


def test_errors_name_folder_and_file(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"data\.chat_template=.*none\.jinja"):
        load_tokenizer(digits / "tokenizer", tmp_path / "none.jinja")
