"""A small byte-level BPE tokenizer, trained in a fraction of a second and saved as transformers saves one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import Model

PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE)

# What a conversation looks like. `generation` blocks mark what is learned: the answer and its end token.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set parts = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set parts.text = parts.text + '<image>\\n' -%}"
    "{%- else -%}{%- set parts.text = parts.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- set text = parts.text -%}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ 'USER: ' + text + ' ' }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ 'ASSISTANT: ' }}{%- generation -%}{{ text + eos_token }}{%- endgeneration -%}"
    "{%- else -%}{{ text + ' ' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT: ' }}{%- endif -%}"
)

# The words of the template are pieces of their own, so that no token reaches from the prompt into the answer.
_TEMPLATE_WORDS = r" ?(USER|ASSISTANT): "
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int, folder: Path) -> None:
    """Trains a tokenizer on `texts` and writes it to `folder`; `AutoTokenizer.from_pretrained` reads it.

    Args:
        texts: what to learn merges from.
        vocab_size: tokens in all: the special ones first, then 256 bytes, then merges.
        max_length: `model_max_length` in tokens.
        folder: made here.
    """
    from tokenizers import models, trainers

    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=_bytes(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    _save(tokenizer, max_length, folder)


def write_tokenizer(merges: Sequence[tuple[str, str]], max_length: int, folder: Path) -> None:
    """Writes the tokenizer that these merges make: the same everywhere, which training on texts is not.

    Args:
        merges: pairs in the order in which they were learned.
        max_length: `model_max_length` in tokens.
        folder: made here.
    """
    from tokenizers import AddedToken, models

    tokens = [*SPECIAL_TOKENS, *_bytes(), *(left + right for left, right in merges)]
    tokenizer = _byte_level(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    _save(tokenizer, max_length, folder)


def _bytes() -> list[str]:
    """The characters that stand for the 256 bytes."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _byte_level(model: Model) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_TEMPLATE_WORDS), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(_GPT2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _save(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "tokenizer_config.json").write_text(json.dumps(_config(max_length), indent=2) + "\n")


def _config(max_length: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "image_token": IMAGE,
        "extra_special_tokens": {"image_token": IMAGE},
        "model_max_length": max_length,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
