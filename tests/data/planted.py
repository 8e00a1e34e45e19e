"""A clean data set, and faults to plant in it. Each fault is one sample, file or shard that a check has to name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Record = dict[str, Any]


def image(number: int, size: tuple[int, int] = (24, 20), kind: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded image, another one for each number."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(noise) if mode == "RGB" else Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def record(number: int, name: str = "ok") -> Record:
    """A good sample: with one image, with none, or with two, in two turns."""
    messages = [
        {"role": "user", "content": "<image>\nWhich digit is shown?"},
        {"role": "assistant", "content": str(number)},
    ]
    if number % 3 == 1:
        messages[0]["content"] = "Which digit comes next?"
    if number % 3 == 2:
        messages[:0] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": f"digit {number}"},
        ]
    images = [f"{name}{number}_{i}.png" for i in range((1, 0, 2)[number % 3])]
    return {"id": f"{name}{number}", "images": images, "messages": messages}


@dataclass
class DataSet:
    """Records and files of a folder with `train.jsonl` and `eval.jsonl`."""

    train: list[Record | bytes] = field(default_factory=list)
    """A line of bytes is written as it is."""
    held_out: list[Record | bytes] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def clean(cls, size: int = 12) -> DataSet:
        """Nothing wrong."""
        data = cls([record(i) for i in range(size)], [record(i, "held") for i in range(100, 106)])
        for i, one in enumerate([*data.train, *data.held_out]):
            assert isinstance(one, dict)
            for j, name in enumerate(one["images"]):
                data.files[name] = image(10 * i + j)
        return data

    def write(self, folder: Path) -> Path:
        """Writes everything into a new folder."""
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        for name, records in (("train.jsonl", self.train), ("eval.jsonl", self.held_out)):
            lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in records]
            (folder / name).write_bytes(b"\n".join(lines) + b"\n")
        return folder

    def add(self, **changes: Any) -> None:
        """One more training sample, with an image, and what `changes` makes of it."""
        number = len(self.train)
        name = f"bad{number}.png"
        self.files[name] = image(1000 + number)
        new = {"id": f"bad{number}", "images": [name], "messages": talk()}
        self.train.append({key: value for key, value in {**new, **changes}.items() if value is not ...})


def talk(question: Any = "<image>\nWhich digit is shown?", answer: Any = "7") -> list[Record]:
    """One question, one answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _with_image(content: bytes, name: str) -> Callable[[DataSet], None]:
    def plant(data: DataSet) -> None:
        data.files[name] = content
        data.add(images=[name])

    return plant


def _sample(**changes: Any) -> Callable[[DataSet], None]:
    return lambda data: data.add(**changes)


def _text_only(question: Any, answer: Any = "7") -> Callable[[DataSet], None]:
    return _sample(images=[], messages=talk(question, answer))


def _line(content: bytes) -> Callable[[DataSet], None]:
    return lambda data: data.train.append(content)


def _bomb() -> bytes:
    """100 million pixels in about 100 kB."""
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


def _same_id(data: DataSet) -> None:
    data.add(id="ok3")


def _leaked_id(data: DataSet) -> None:
    data.held_out.append({"id": "ok4", "images": [], "messages": talk("Say something", "new")})


def _leaked_content(data: DataSet) -> None:
    first = data.train[0]
    assert isinstance(first, dict)
    data.held_out.append({**first, "id": "another name"})


def _roles(*roles: str) -> Callable[[DataSet], None]:
    return _sample(images=[], messages=[{"role": role, "content": f"word {i}"} for i, role in enumerate(roles)])


ERRORS: dict[str, tuple[str, Callable[[DataSet], None]]] = {
    "more placeholders than images": ("image_count", _sample(messages=talk("<image><image> Which?"))),
    "fewer placeholders than images": ("image_count", _sample(messages=talk("Which?"))),
    "image that is none": ("undecodable_image", _with_image(b"this is no image", "none.png")),
    "empty image file": ("undecodable_image", _with_image(b"", "empty.png")),
    "truncated PNG": ("undecodable_image", _with_image(image(1)[:400], "cut.png")),
    "truncated JPEG": ("undecodable_image", _with_image(image(1, (90, 90), "JPEG")[:-2000], "cut.jpg")),
    "decompression bomb": ("image_too_large", _with_image(_bomb(), "bomb.png")),
    "missing image file": ("missing_image", _sample(images=["nowhere.png"])),
    "image path out of the folder": ("image_path", _sample(images=["../../etc/passwd"])),
    "empty answer": ("empty_answer", _text_only("Which?", "")),
    "answer of blanks": ("empty_answer", _text_only("Which?", " \n\t ")),
    "answer that is only a mark of omission": ("truncated_answer", _text_only("Which?", " ...")),
    "no answer": ("no_answer", _roles("user")),
    "empty list of messages": ("wrong_type", _sample(messages=[])),
    "no messages": ("no_messages", _sample(messages=...)),
    "too long": ("too_long", _text_only("Which?", "seven " * 200)),
    "two questions in a row": ("role_order", _roles("user", "user", "assistant")),
    "answer first": ("role_order", _roles("assistant", "user", "assistant")),
    "system message late": ("role_order", _roles("user", "assistant", "system", "assistant")),
    "unknown role": ("unknown_role", _roles("user", "model")),
    "id twice": ("duplicate_id", _same_id),
    "question without text": ("empty_question", _text_only("  ")),
    "raw text of nothing": ("no_label_tokens", _line(b'{"id": "t", "text": ""}')),
    "raw text of blanks": ("empty_text", _line(b'{"id": "t", "text": "  "}')),
    "raw text with an image": ("text_with_images", _sample(messages=..., text="a word")),
    "not JSON": ("invalid_json", _line(b'{"id": "broken", "messages": [')),
    "JSON, but no object": ("invalid_json", _line(b"[1, 2]")),
    "JSON too deep": ("invalid_json", _line(b"[" * 100_000)),
    "not UTF-8": ("not_utf8", _line(b'{"id": "latin", "text": "caf\xe9"}')),
    "half a surrogate pair": ("lone_surrogate", _line(b'{"id": "half", "text": "a \\ud83d b"}')),
    "content of a wrong type": ("wrong_type", _text_only(7)),
    "content null": ("wrong_type", _text_only("Which?", None)),
    "messages of a wrong type": ("wrong_type", _sample(messages="Which? 7")),
    "images of a wrong type": ("wrong_type", _sample(images={"0": "a.png"})),
    "text of a wrong type": ("wrong_type", _sample(messages=..., images=[], text=3)),
    "id of a wrong type": ("wrong_type", _sample(id=["a"])),
    "part of an unknown type": ("wrong_type", _text_only([{"type": "audio"}])),
    "image token in a text part": ("image_token_in_text", _text_only([{"type": "text", "text": "an <image> here"}])),
    "image token in an answer": ("image_token_in_text", _text_only("Which?", "this <image>")),
    "image token in a raw text": ("image_token_in_text", _line(b'{"id": "t", "text": "an <image>"}')),
    "end token in an answer": ("special_token_in_text", _text_only("Which?", "seven</s> eight")),
}

WARNINGS: dict[str, tuple[str, Callable[[DataSet], None]]] = {
    "id of a training sample": ("leaked_id", _leaked_id),
    "content of a training sample": ("leaked_content", _leaked_content),
    "very wide image": ("aspect_ratio", _with_image(image(3, (400, 8)), "wide.png")),
    "one pixel": ("tiny_image", _with_image(image(3, (1, 1)), "tiny.png")),
    "16 bits": ("clipped_depth", _with_image(image(3, mode="I;16"), "deep.png")),
    "placeholder of another framework": ("foreign_placeholder", _text_only("<img> Which?")),
    "decoded wrongly once": ("replacement_character", _text_only("Which caf\ufffd?")),
    "NUL": ("control_character", _text_only("Which\0?")),
}
