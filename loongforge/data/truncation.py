"""Which tokens of a sample stay where it is longer than the model's context (`data.too_long: truncate_text`)."""

from __future__ import annotations

import numpy as np


def kept_tokens(is_image: np.ndarray, learned: np.ndarray, max_length: int) -> np.ndarray | None:
    """Positions to keep: all image tokens, and as much text as there is room for.

    The conversation is cut at its end. Where nothing to learn comes before that, the first answer is cut to half the
    room, and the rest goes to the first and the last part of the text before it, so that the question's beginning
    and what the template writes before an answer are both still there.

    Args:
        is_image: bool [T].
        learned: bool [T], never true where `is_image` is.
        max_length: most positions that may stay; below T.

    Returns:
        int64 [max_length], ascending; None where the images leave no room for a label token.
    """
    text = np.flatnonzero(~is_image)
    room = max_length - (len(is_image) - len(text))
    if room < 1 or not learned[1:].any():
        return None
    kept = text[:room]
    if not _has_label(kept, learned):
        kept = _around_first_answer(text, learned, room)
    chosen = np.sort(np.concatenate([np.flatnonzero(is_image), kept]))
    return chosen if learned[chosen[1:]].any() else None


def _has_label(kept: np.ndarray, learned: np.ndarray) -> bool:
    return bool(learned[kept[kept > 0]].any())


def _around_first_answer(text: np.ndarray, learned: np.ndarray, room: int) -> np.ndarray:
    first = 1 + int(np.argmax(learned[text][1:]))  # in `text`; position 0 has nothing to follow from
    rest = learned[text][first:]
    length = len(rest) if rest.all() else int(np.argmin(rest))
    answer = min(length, max(1, room // 2))
    before = room - answer
    head = before - before // 2
    return np.concatenate([text[:head], text[first - before // 2 : first], text[first : first + answer]])
