"""`digits_vqa`: questions about canvases of real handwritten digits (scikit-learn's bundled set).

A canvas is 32 x 32 pixels, 2 x 2 cells, each empty or one 8 x 8 digit doubled in size. Training and validation
use different handwritten digits, so a held-out score cannot come from remembering them.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from loongforge.data.builtin.tokenizer import write_tokenizer
from loongforge.data.sources.shard_writer import write_shards

VERSION = 1
NUM_TRAIN_DIGITS = 1497
NUM_SAMPLES = {"train": 8000, "val": 1500}
SAMPLES_PER_SHARD = 2000
_CELL = 16
_CELL_NAMES = ("top left", "top right", "bottom left", "bottom right")  # reading order

Canvas = dict[int, int]
"""Cell number -> the value of the digit in it."""

QUESTIONS = {
    "digit": ("Which digit is shown?", "What digit do you see?", "Name the digit."),
    "read": ("Read the digits in order.", "What number do the digits spell?"),
    "sum": ("What is the sum of the digits?", "Add up the digits."),
    "compare": ("Which digit is larger, left or right?", "Is the left or the right digit larger?"),
    "count": ("How many digits are there?", "Count the digits.", "What is the number of digits?"),
    "corner": ("Which digit is {}?", "What is the {} digit?"),
}


def write(folder: Path) -> None:
    """Writes shards, their indexes and the tokenizer into an existing empty folder."""
    values, glyphs = load_digits()
    order = list(range(len(values)))
    random.Random("digits_vqa split").shuffle(order)
    digits = {"train": order[:NUM_TRAIN_DIGITS], "val": order[NUM_TRAIN_DIGITS:]}
    for split, num_samples in NUM_SAMPLES.items():
        by_value = [[i for i in digits[split] if values[i] == value] for value in range(10)]
        write_shards(folder, split, _samples(split, num_samples, by_value, glyphs), SAMPLES_PER_SHARD)
    write_tokenizer(_merges(), 1024, folder / "tokenizer")


def _merges() -> list[tuple[str, str]]:
    """Learned once from CPython 3.11.7's help texts and 500 times the questions; other Pythons have other texts."""
    lines = (Path(__file__).parent / "digits_vqa_merges.txt").read_text(encoding="utf-8").splitlines()
    return [(left, right) for left, right in (line.split(" ") for line in lines)]


def load_digits() -> tuple[list[int], np.ndarray]:
    """The 1797 digits: their values, and uint8 pixels `[1797, 16, 16]`, doubled in size.

    Reads scikit-learn's file without importing scikit-learn, which would take longer than the rest of the build.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    pixels = np.round(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    resized = [Image.fromarray(p).resize((_CELL, _CELL), Image.Resampling.BILINEAR) for p in pixels]
    return [int(value) for value in table[:, 64]], np.stack([np.asarray(image) for image in resized])


def _samples(
    split: str, number: int, by_value: list[list[int]], glyphs: np.ndarray
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, {suffix: content}); the tasks take turns."""
    tasks = list(_TASKS)
    for i in range(number):
        rng = random.Random(f"digits_vqa {split} {i}")
        task = tasks[i % len(tasks)]
        canvas, subject, answer = _TASKS[task](rng)
        question = rng.choice(QUESTIONS[task]).format(subject)
        key = f"{split}_{i:05d}"
        messages = [{"role": "user", "content": f"<image>\n{question}"}, {"role": "assistant", "content": answer}]
        record = json.dumps({"id": key, "task": task, "messages": messages}).encode()
        yield key, {"json": record, "0.png": _draw(canvas, by_value, glyphs, rng)}


def _draw(canvas: Canvas, by_value: list[list[int]], glyphs: np.ndarray, rng: random.Random) -> bytes:
    pixels = np.zeros((2 * _CELL, 2 * _CELL), np.uint8)
    for cell, value in canvas.items():
        top, left = cell // 2 * _CELL, cell % 2 * _CELL
        pixels[top : top + _CELL, left : left + _CELL] = glyphs[rng.choice(by_value[value])]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _place(values: list[int], rng: random.Random) -> Canvas:
    """The values in random cells, in reading order."""
    return dict(zip(sorted(rng.sample(range(4), len(values))), values, strict=True))


def _some(number: int, rng: random.Random) -> list[int]:
    return [rng.randrange(10) for _ in range(number)]


def _digit(rng: random.Random) -> tuple[Canvas, str, str]:
    values = _some(1, rng)
    return _place(values, rng), "", str(values[0])


def _read(rng: random.Random) -> tuple[Canvas, str, str]:
    values = _some(rng.randint(2, 4), rng)
    return _place(values, rng), "", "".join(map(str, values))


def _sum(rng: random.Random) -> tuple[Canvas, str, str]:
    values = _some(2, rng)
    return _place(values, rng), "", str(sum(values))


def _compare(rng: random.Random) -> tuple[Canvas, str, str]:
    low, high = sorted(rng.sample(range(10), 2))
    answer, left, right = rng.choice([("left", high, low), ("right", low, high), ("equal", low, low)])
    row = rng.randrange(2)
    return {2 * row: left, 2 * row + 1: right}, "", answer


def _count(rng: random.Random) -> tuple[Canvas, str, str]:
    number = rng.randint(1, 4)
    return _place(_some(number, rng), rng), "", str(number)


def _corner(rng: random.Random) -> tuple[Canvas, str, str]:
    values = _some(4, rng)
    cell = rng.randrange(4)
    return dict(enumerate(values)), _CELL_NAMES[cell], str(values[cell])


_TASKS: dict[str, Callable[[random.Random], tuple[Canvas, str, str]]] = {
    "digit": _digit,
    "read": _read,
    "sum": _sum,
    "compare": _compare,
    "count": _count,
    "corner": _corner,
}
"""Task -> draws (canvas, what the question is about, answer)."""
