"""Text of answers while their tokens arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loongforge.inference.answers import AnswerText


def _decode(ids: list[int]) -> str:
    """Tokens are bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(
    text=st.text(alphabet="ab é€😀\n.", max_size=12), stop=st.lists(st.text(alphabet="ab.é", max_size=3), max_size=2)
)
def test_pieces_make_the_whole(text: str, stop: list[str]) -> None:
    answer, ids = AnswerText(_decode, stop), list(text.encode())
    shown = ""  # an answer ends at the token that completes a stop string, whatever would have followed
    for number in range(1, len(ids) + 1):
        shown += answer.news(ids[:number])
        assert answer.whole(ids[:number]).startswith(shown)
        if answer.stops(ids[:number]):
            ids = ids[:number]
            break
    assert shown + answer.rest(ids) == answer.whole(ids)
    assert all(part not in answer.whole(ids) for part in stop if part)


@pytest.mark.parametrize(
    ("text", "stop", "whole"),
    [(" 7. The", ["."], "7"), ("a\n\nb", ["\n\n", "b"], "a"), ("abc", ["d", ""], "abc"), ("stop", ["stop"], "")],
)
def test_a_stop_string_is_not_part_of_the_answer(text: str, stop: list[str], whole: str) -> None:
    answer = AnswerText(_decode, stop)
    assert answer.whole(list(text.encode())) == whole
    assert answer.stops(list(text.encode())) is (whole != text)


def test_what_may_begin_a_stop_string_waits() -> None:
    answer = AnswerText(_decode, ["END"])
    assert answer.news(list(b"one E")) == "one"
    assert answer.news(list(b"one EN")) == ""
    assert answer.news(list(b"one EN route")) == " EN route"
