"""Fenced blocks of the Markdown pages, and the comments that guide their test (see CONTRIBUTING.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^(?:<!-- (?P<comment>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_COMMENT = re.compile(r"(^|\s+)#\s.*$", re.M)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    comment: str

    @property
    def file(self) -> str | None:
        """The file that the block is to be written to."""
        return self.comment.removeprefix("file: ") if self.comment.startswith("file: ") else None

    @property
    def is_skipped(self) -> bool:
        """Whether its commands are not to be run."""
        return self.comment.startswith("test: skip, ")

    def commands(self) -> list[str]:
        """Its commands, one per entry, without comments."""
        joined = _COMMENT.sub("", self.text.replace("\\\n", " "))
        return [line.strip() for line in joined.splitlines() if line.strip()]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m["language"], m["text"], m["comment"] or "")
        for m in _BLOCK.finditer(text)
    ]
