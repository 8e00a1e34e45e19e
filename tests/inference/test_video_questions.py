"""Questions about videos in a file: `<video>` where they go, or before the prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loongforge.data.video import split_frames
from loongforge.inference.questions import read_questions


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("What happens?", ["image", "text"]),
        ("First <video> then?", ["text", "image", "text"]),
    ],
)
def test_prompt_with_a_video(prompt: str, kinds: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    line = {"prompt": prompt, "videos": [{"video": ["a", "b"], "fps": 4}]}
    (tmp_path / "ask.jsonl").write_text(json.dumps(line))
    (question,) = read_questions(str(tmp_path / "ask.jsonl"), 100)
    content = question.messages[0]["content"]
    assert [part["type"] for part in content] == kinds
    assert "".join(part.get("text", "") for part in content).strip() == prompt.replace("<video>", "")
    assert split_frames(question.images[0]()) == ([b"a", b"b"], 4.0)
    assert question.text == prompt


def test_prompt_with_a_video_and_an_image(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "ask.jsonl").write_text(json.dumps({"prompt": "Same?", "videos": [["a"]], "images": ["b"]}))
    (question,) = read_questions(str(tmp_path / "ask.jsonl"), 100)
    assert [read()[:1] for read in question.images] == [b"b", b"l"], "the image first, as it is placed"
