"""`pydoc_text`: CPython's own help texts as raw text, to pretrain a tiny language model on.

Every installation has them; each release of Python has its own, and so a tokenizer and a loss of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from loongforge.data.builtin.tokenizer import train_tokenizer

VERSION = 1
VOCAB_SIZE = 512
MAX_CHARS = 400
"""Longest sample: about 200 tokens."""
_HOLD_OUT = 10  # every tenth topic is held out


def write(folder: Path) -> None:
    """Writes `train.jsonl`, `val.jsonl` and the tokenizer into an existing empty folder."""
    splits: dict[str, list[dict[str, str]]] = {"train": [], "val": []}
    distinct = {text: name for name, text in sorted(python_topics().items(), reverse=True)}
    topics = sorted((name, text) for text, name in distinct.items())
    for i, (name, text) in enumerate(topics):
        pieces = [{"id": f"{name}_{j}", "text": piece} for j, piece in enumerate(_pieces(text))]
        splits["val" if i % _HOLD_OUT == 0 else "train"] += pieces
    for split, samples in splits.items():
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (folder / f"{split}.jsonl").write_text(lines)
    train_tokenizer([sample["text"] for sample in splits["train"]], VOCAB_SIZE, 1024, folder / "tokenizer")


def python_topics() -> dict[str, str]:
    """CPython's own help texts: half a megabyte of English in every installation."""
    from pydoc_data.topics import topics

    return topics


def _pieces(text: str) -> Iterator[str]:
    """Cuts a text at line ends into pieces of at most `MAX_CHARS`."""
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece and len(piece) + len(line) > MAX_CHARS:
            yield piece
            piece = ""
        piece += line
    if piece.strip():
        yield piece
