"""A conversation with images: what has been said, and what of it is cached."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from loongforge.data.sample import SampleError
from loongforge.inference.answers import AnswerText
from loongforge.inference.generation import Completion, Memory, Settings, generate
from loongforge.inference.questions import Question, make_prompt, place_images, read_image
from loongforge.inference.session import LoadedModel


@dataclass(frozen=True)
class Picture:
    """An image of a conversation."""

    path: str
    content: bytes


class Conversation:
    """Turns of a user and a model; the same on every rank.

    Args:
        loaded: The model.
        settings: How answers are made.
        stop: Strings that end an answer.
    """

    def __init__(self, loaded: LoadedModel, settings: Settings, stop: list[str]) -> None:
        self.loaded, self.settings, self.stop = loaded, settings, stop
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.messages: list[dict[str, Any]] = []
        self.shown: list[Picture] = []
        """Images of the messages."""
        self.waiting: list[Picture] = []
        """Images of the next message."""
        self.memory = Memory()

    def add_image(self, path: str) -> None:
        """An image for the next message; SampleError where it cannot be read, or is none."""
        content = read_image(path)
        images = self.loaded.processor.image_processor
        if images is None:
            raise SampleError("the model has no vision encoder (model.vision)")
        try:
            images.tiles(content)
        except SampleError as error:
            raise SampleError(f"image {path}: {error}") from error
        self.waiting.append(Picture(path, content))

    def say(self, text: str, *, show: Callable[[str], None], is_stopped: Callable[[], bool]) -> Completion:
        """The model's answer; both join the conversation. Collective over the world.

        Args:
            text: What the user says, with `<image>` where the waiting images go; those left over come first.
            show: Called with each new piece of the answer, on ranks that make it.
            is_stopped: Whether the answer is to end now.

        Raises:
            UserError: it cannot be said: too long, or images and placeholders differ in number.
        """
        said = {"role": "user", "content": place_images(text, len(self.waiting))}
        pictures = [*self.shown, *self.waiting]
        readers = [partial(bytes, picture.content) for picture in pictures]
        question = Question(f"turn {len(self.messages)}", "this message", text, [*self.messages, said], readers)
        processor = self.loaded.processor
        prompt = make_prompt(processor, question)
        answer = AnswerText(partial(processor.decode, skip_special_tokens=True), self.stop)
        settings = replace(
            self.settings,
            ends=lambda ids: answer.stops(ids) or is_stopped(),
            on_token=lambda _, ids: show(answer.news(ids)),
        )
        completion = generate(self.loaded.runner, [prompt], settings, memory=self.memory)[0]
        show(answer.rest(completion.tokens))
        self.messages += [said, {"role": "assistant", "content": answer.whole(completion.tokens)}]
        self.shown, self.waiting = pictures, []
        return completion

    def save(self, path: str) -> None:
        """Writes the conversation as a sample that can be trained on; images outside its folder are written into it."""
        target = Path(path).resolve()
        record = {
            "id": target.stem,
            "images": [_reference(picture, target.parent) for picture in self.shown],
            "messages": self.messages,
        }
        target.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


def _reference(picture: Picture, folder: Path) -> str:
    """A path that data may name: inside the folder; else the image itself."""
    place = os.path.relpath(Path(picture.path).resolve(), folder)
    if not place.startswith(".."):
        return place
    return "data:;base64," + base64.b64encode(picture.content).decode()
