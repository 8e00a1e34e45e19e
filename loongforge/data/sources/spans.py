"""Where the records of a JSON file lie: JSONL with one object per line, or one list of objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import numpy as np

from loongforge.config.errors import UserError
from loongforge.data.sources.cache import cache_path, read_arrays, smallest, write_arrays
from loongforge.data.sources.files import base_name, open_file, stamp

_VERSION = 2
_LINES = (".jsonl", ".ndjson")
"""Files of lines, whatever the first one holds."""
_CHUNK = 1 << 24
_WHITESPACE = " \t\r\n"


def spans_path(file: str, index_dir: str | None = None) -> Path | None:
    """Where `save_spans` writes; None: nowhere, as the file is remote."""
    return cache_path(file, ".index.npz", index_dir)


def load_spans(file: str, index_dir: str | None = None) -> tuple[str, np.ndarray]:
    """(what a record is called, [records, 3]: its number, and its first and end byte).

    Raises:
        UserError: it cannot be read, is no JSON list, or is empty.
    """
    try:
        path = spans_path(file, index_dir)
        cached = read_arrays(path, _header(file)) if path is not None else None
        return ("entry" if cached["is_list"] else "line", cached["spans"]) if cached is not None else _scan(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def save_spans(file: str, index_dir: str | None = None) -> None:
    """Keeps the positions for `load_spans`, where the file has changed or is new; OSError where that is impossible."""
    path = spans_path(file, index_dir)
    if path is not None and read_arrays(path, _header(file)) is None:
        unit, spans = load_spans(file)
        write_arrays(path, _header(file), {"is_list": np.array(unit == "entry"), "spans": smallest(spans)})


def _header(file: str) -> dict[str, object]:
    return {"version": _VERSION, "data": stamp(file)}


def _scan(file: str) -> tuple[str, np.ndarray]:
    with open_file(file) as stream:
        head = stream.read(4096).lstrip(b"\xef\xbb\xbf").lstrip()
        stream.seek(0)
        is_list = head.startswith(b"[") and not base_name(file).endswith(_LINES)
        unit, spans = ("entry", _list_spans(file, stream)) if is_list else ("line", _line_spans(stream))
    if not len(spans):
        raise UserError(f"{file} holds no samples")
    return unit, spans


def _line_spans(stream: BinaryIO) -> np.ndarray:
    """Lines that are not blank; their numbers count from 1 as editors count."""
    ends, offset = [], 0
    while chunk := stream.read(_CHUNK):
        ends.append(np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset)
        offset += len(chunk)
    end = np.concatenate([*ends, [offset]]).astype(np.int64)
    start = np.concatenate([[0], end[:-1] + 1])
    spans = np.stack([np.arange(1, len(end) + 1), start, end], axis=1)
    spans = spans[end > start]
    stream.seek(0)
    if stream.read(3) == b"\xef\xbb\xbf":  # a byte order mark, as Windows editors write it
        spans[0, 1] = 3
    # only short lines can be blank; reading those is cheap
    short = [i for i in np.flatnonzero(spans[:, 2] - spans[:, 1] < 16) if not _text(stream, spans[i]).strip()]
    return np.delete(spans, short, axis=0)


def _text(stream: BinaryIO, span: np.ndarray) -> bytes:
    stream.seek(int(span[1]))
    return stream.read(int(span[2] - span[1]))


def _list_spans(file: str, stream: BinaryIO) -> np.ndarray:
    """Elements of one JSON list, counted from 0.

    Decoding as Latin-1 maps every byte to one character, and all bytes that mean something to JSON are ASCII,
    so positions in the text are positions in the file.
    """
    text = stream.read().decode("latin-1")
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
        after = _skip(text, position + 1, _WHITESPACE)
        if after < len(text):
            raise json.JSONDecodeError("Something stands behind the list", text, after)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{file} is not valid JSON: {error} (entry {len(spans)} of the list)") from error
    return np.array(spans, np.int64).reshape(-1, 3)


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position
