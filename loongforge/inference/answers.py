"""Text of answers: stop strings, and what of a growing answer can be shown already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

_PART_OF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Text of one answer while its tokens arrive.

    Args:
        decode: Text of token ids, special tokens left out.
        stop: Strings that end the answer; they are not part of it.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, [text for text in stop if text]
        self._shown = ""

    def whole(self, ids: list[int]) -> str:
        """The text, up to the first stop string, without the space around it."""
        text = self.decode(ids)
        return text[: self._end(text)].strip()

    def stops(self, ids: list[int]) -> bool:
        """Whether a stop string has appeared."""
        text = self.decode(ids) if self.stop else ""
        return self._end(text) < len(text)

    def _end(self, text: str) -> int:
        found = [text.find(stop) for stop in self.stop]
        return min((place for place in found if place >= 0), default=len(text))

    def news(self, ids: list[int]) -> str:
        """What can be shown now and was not before: no half characters, nothing that may begin a stop string."""
        text = self.decode(ids)
        end = self._end(text)
        text = text[:end] if end < len(text) else self._certain(text)
        return self._show(text.strip())

    def rest(self, ids: list[int]) -> str:
        """What is still to be shown when the answer has ended."""
        return self._show(self.whole(ids))

    def _certain(self, text: str) -> str:
        text = text.rstrip(_PART_OF_A_CHARACTER)
        held = max((_overlap(text, stop) for stop in self.stop), default=0)
        return text[: len(text) - held]

    def _show(self, text: str) -> str:
        if not text.startswith(self._shown):  # a tokenizer that rewrites what it wrote: wait for the end
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop string begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
