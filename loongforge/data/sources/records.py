"""JSON files of samples: JSONL with one object per line, or LLaVA's JSON with one list of objects."""

from __future__ import annotations

import bisect
import itertools
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.sample import TEXT_WITH_IMAGES, Location, RawSample, SampleError, id_of, messages_of, text_of
from loongforge.data.sources.base import FileReader
from loongforge.data.sources.shards import parse_record

_CHUNK = 1 << 24
_WHITESPACE = " \t\r\n"


class RecordSource:
    """Records of several JSON files, numbered through; only their positions are kept in memory."""

    def __init__(self, name: str, files: list[Path], image_dir: Path | None):
        self.name = name
        self._files = files
        self._image_dir = image_dir
        self._spans = [_spans(file) for file in files]
        self._starts = [0, *itertools.accumulate(len(spans) for _, spans in self._spans)]
        self._reader = FileReader()

    def __len__(self) -> int:
        return self._starts[-1]

    def load(self, index: int) -> RawSample:
        """Reads one sample; SampleError where it is malformed."""
        number, entry = self._find(index)
        file = self._files[number]
        _, start, end = self._spans[number][1][entry].tolist()
        record = parse_record(self._reader.read(file, start, end - start))
        name, own = id_of(record, f"{file.name}:{self._key(number, entry)}")
        text = text_of(record)
        if text is not None:
            if _image_paths(record):
                raise SampleError(TEXT_WITH_IMAGES, problem="text_with_images")
            return RawSample(id=name, text=text, has_own_id=own)
        folder = self._image_dir if self._image_dir is not None else file.parent
        images = [partial(_read_image, _inside(folder, path)) for path in _image_paths(record)]
        return RawSample(id=name, messages=messages_of(record), images=images, has_own_id=own)

    def locate(self, index: int) -> Location:
        """Says where a sample lies, without reading it."""
        number, entry = self._find(index)
        return Location(self.name, str(self._files[number]), self._key(number, entry))

    def _key(self, number: int, entry: int) -> str:
        unit, spans = self._spans[number]
        return f"{unit} {spans[entry, 0]}"

    def _find(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]


def _spans(file: Path) -> tuple[str, np.ndarray]:
    """(what a record is called, int64 [records, 3]: its number, and its first and end byte)."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(4096).lstrip(b"\xef\xbb\xbf").lstrip()
        spans = ("entry", _list_spans(file)) if head.startswith(b"[") else ("line", _line_spans(file))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if not len(spans[1]):
        raise UserError(f"{file} holds no samples")
    return spans


def _line_spans(file: Path) -> np.ndarray:
    """Lines that are not blank; their numbers count from 1 as editors count."""
    ends, offset = [], 0
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset)
            offset += len(chunk)
    end = np.concatenate([*ends, [offset]]).astype(np.int64)
    start = np.concatenate([[0], end[:-1] + 1])
    spans = np.stack([np.arange(1, len(end) + 1), start, end], axis=1)
    spans = spans[end > start]
    with open(file, "rb") as stream:
        if stream.read(3) == b"\xef\xbb\xbf":  # a byte order mark, as Windows editors write it
            spans[0, 1] = 3
        # only short lines can be blank; reading those is cheap
        short = [i for i in np.flatnonzero(spans[:, 2] - spans[:, 1] < 16) if not _text(stream, spans[i]).strip()]
    return np.delete(spans, short, axis=0)


def _text(stream: Any, span: np.ndarray) -> bytes:
    stream.seek(int(span[1]))
    return stream.read(int(span[2] - span[1]))


def _list_spans(file: Path) -> np.ndarray:
    """Elements of one JSON list, counted from 0.

    Decoding as Latin-1 maps every byte to one character, and all bytes that mean something to JSON are ASCII,
    so positions in the text are positions in the file.
    """
    text = file.read_bytes().decode("latin-1")
    decode = json.JSONDecoder().raw_decode
    spans: list[tuple[int, int, int]] = []
    position = _skip(text, text.index("[") + 1, _WHITESPACE)
    try:
        while text[position : position + 1] != "]":
            _, end = decode(text, position)
            spans.append((len(spans), position, end))
            position = _skip(text, end, _WHITESPACE)
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
            position = _skip(text, position + (text[position] == ","), _WHITESPACE)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error} (entry {len(spans)} of the list)") from error
    return np.array(spans, np.int64).reshape(-1, 3)


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _image_paths(record: dict[str, Any]) -> list[str]:
    """`images` or LLaVA's `image`, each a path or a list of paths."""
    paths = record.get("images", record.get("image", []))
    paths = [paths] if isinstance(paths, str) else paths or []
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise SampleError(f"'images' must be a list of paths, not {paths!r:.80}", problem="wrong_type")
    return paths


def _inside(folder: Path, path: str) -> Path:
    """`path` relative to `folder`, refused where it leads out: data from elsewhere must not read any file."""
    base = os.path.abspath(folder)
    joined = os.path.normpath(os.path.join(base, path))
    if os.path.commonpath([base, joined]) != base:
        raise SampleError(
            f"image path '{path}' leads out of {base}; set data.image_dir to a folder that holds the images",
            problem="image_path",
        )
    return Path(joined)


def _read_image(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise SampleError(
            f"cannot read image {path}: {getattr(error, 'strerror', None) or error}", problem="missing_image"
        ) from error
