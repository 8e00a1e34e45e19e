"""Loads a Hugging Face tokenizer, importing as little of transformers as its folder allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from loongforge.config.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Saved by transformers 4 and 5 for a tokenizer that is wholly described by its tokenizer.json.
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_tokenizer(folder: str | Path, chat_template: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder.

    Args:
        folder: a folder with `tokenizer.json` (or what `AutoTokenizer` reads).
        chat_template: Jinja file that replaces the tokenizer's own chat template.

    Raises:
        UserError: no such folder, no tokenizer in it, no end token, or the template cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"data.tokenizer={folder}: no such folder; give a folder of a Hugging Face tokenizer")
    try:
        tokenizer = _load(path)
    except Exception as error:  # transformers raises many kinds for a folder it does not understand
        raise UserError(f"data.tokenizer={folder}: cannot load a tokenizer from it: {error}") from error
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"data.chat_template={chat_template}: cannot read it: {error}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"data.tokenizer={folder}: it has no end token; set eos_token in tokenizer_config.json")
    return tokenizer


def _load(path: Path) -> PreTrainedTokenizerBase:
    config = path / "tokenizer_config.json"
    name = json.loads(config.read_text()).get("tokenizer_class") if config.exists() else None
    if name in _GENERIC_CLASSES and (path / "tokenizer.json").exists():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
