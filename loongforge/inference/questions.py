"""What is asked: a prompt with image files, or conversations of a file, made into tokens and pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.chat import Message
from loongforge.data.eval_loader import plain
from loongforge.data.processed import Tiles
from loongforge.data.processing import SampleProcessor
from loongforge.data.sample import SampleError
from loongforge.data.sources.record import image_names, make_sample, parse_record
from loongforge.data.sources.references import ImageFolder, Reader
from loongforge.data.sources.videos import VIDEO, videos_of
from loongforge.inference.generation import Prompt

PLACEHOLDER = "<image>"
"""Where an image goes in what a user writes, whatever the tokenizer calls it."""


@dataclass(frozen=True)
class Question:
    """A conversation that the model is to continue."""

    id: str
    """Decides the draws of its answer."""
    where: str
    """For messages: the option or the line that it comes from."""
    text: str
    """What was asked, as it was written."""
    messages: list[Message]
    images: Sequence[Reader] = ()


def asked(prompt: str, images: Sequence[str]) -> Question:
    """One question of a user.

    Args:
        prompt: With `<image>` where images go; those that it does not place come before it.
        images: Files.
    """
    content = place_images(prompt, len(images))
    messages = [{"role": "user", "content": content}]
    return Question("", "--prompt", prompt, messages, [partial(read_image, file) for file in images])


def place_images(text: str, number: int) -> str:
    """The text with a placeholder for each of a number of images."""
    return f"{PLACEHOLDER}\n" * max(0, number - text.count(PLACEHOLDER)) + text


def read_image(path: str) -> bytes:
    """An image file's bytes; SampleError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SampleError(f"image {path}: {error.strerror or error}") from error


def read_questions(path: str, max_bytes: int) -> Iterator[Question]:
    """Questions of a JSONL file, image paths relative to it.

    A line is a sample in any of the formats that are trained on (its last answer, the reference, is left out), or
    `{"prompt": TEXT, "images": [FILE, ...], "videos": [[FRAME, ...], ...]}`; both may give `id`.

    Raises:
        UserError: the file cannot be read, or a line is no question.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"--data {path}: {error.strerror or error}") from error
    folder = ImageFolder(str(Path(path).resolve().parent))
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"--data {path}, line {number}"
            try:
                yield _question(line, where, f"{Path(path).name}:{number}", folder, max_bytes)
            except SampleError as error:
                raise UserError(f"{where}: {error}") from error


def _question(line: bytes, where: str, name: str, folder: ImageFolder, max_bytes: int) -> Question:
    record = parse_record(line)
    prompt = record.get("prompt")
    if "prompt" in record:
        if not isinstance(prompt, str):
            raise SampleError(f"'prompt' must be a text, not {prompt!r:.80}")
        videos = f"{VIDEO}\n" * max(0, len(videos_of(record)) - prompt.count(VIDEO))
        content = place_images(videos + prompt, len(image_names(record)))
        record = {**record, "messages": [{"role": "user", "content": content}]}
    sample = make_sample(name, record, named=lambda names: folder.readers(names, max_bytes))
    if sample.text is not None:
        raise SampleError("it is a raw text; give 'messages', or a 'prompt'")
    answered = bool(sample.messages) and sample.messages[-1].get("role") == "assistant"
    messages = sample.messages[:-1] if answered else sample.messages
    text = prompt or (plain(messages[-1]["content"]) if messages else "")
    return Question(sample.id, where, text, messages, sample.images)


def make_prompt(processor: SampleProcessor, question: Question) -> Prompt:
    """Tokens and pixels of a question.

    Raises:
        UserError: images and placeholders do not fit, an image cannot be read, or it is too long.
    """
    messages = [{**message, "content": _own_token(message["content"], processor)} for message in question.messages]
    try:
        found = [_image(processor, read()) for read in question.images]
        images = [tiles for tiles, _ in found]
        ids = processor.render_prompt(messages, images)
    except SampleError as error:
        raise UserError(f"{question.where}: {error}") from error
    shapes = [shape for tiles in images for shape in tiles] if processor.any_size else None
    pixels = processor.normalise([tile for _, part in found for tile in part])
    return Prompt(ids, pixels, shapes, key=_key(question.id))


def _own_token(content: object, processor: SampleProcessor) -> object:
    """Text with the recipe's placeholder for ours."""
    return content.replace(PLACEHOLDER, processor.placeholder) if isinstance(content, str) else content


def _image(processor: SampleProcessor, content: bytes) -> tuple[Tiles, list[np.ndarray]]:
    if processor.image_processor is None:
        return (), []  # `render_prompt` says that the model takes no images
    return processor.read_image(content)


def _key(name: str) -> int:
    """64 bits of a question's id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
