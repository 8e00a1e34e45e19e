"""One JSON object or table row, in any of the formats that are read, as a sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from loongforge.data.sample import TEXT_WITH_IMAGES, RawSample, SampleError, id_of, messages_of, text_of
from loongforge.data.sources.references import Reader, take_references
from loongforge.data.sources.videos import place_videos, videos_of
from loongforge.data.video import FrameNames, VideoReader


def make_sample(
    name: str,
    record: dict[str, Any],
    *,
    named: Callable[[Sequence[str]], list[Reader]],
    given: Sequence[Reader] = (),
) -> RawSample:
    """A sample from its record.

    Args:
        name: the id of a record without one.
        record: with `messages`, `conversations` (LLaVA, ShareGPT), `texts` or `text`.
        named: makes readers of images that the record names.
        given: images that lie beside the record.

    Raises:
        SampleError: it is malformed.
    """
    name, own = id_of(record, name)
    names = [] if given else image_names(record)
    text = text_of(record)
    if text is not None:
        if given or names:
            raise SampleError(TEXT_WITH_IMAGES, problem="text_with_images")
        return RawSample(id=name, text=text, has_own_id=own)
    messages = messages_of(record, num_images=len(given) or len(names))
    videos = videos_of(record)
    if videos and given:
        raise SampleError("it names videos, and its images lie beside it; name both", problem="image_count")
    if videos:
        messages, names = place_videos(messages, names, videos), []
    messages, inside = take_references(messages, given=bool(given or names))
    images = list(given) or _readers(names or inside, named)
    return RawSample(id=name, messages=messages, images=images, has_own_id=own)


def _readers(names: Sequence[str | FrameNames], named: Callable[[Sequence[str]], list[Reader]]) -> list[Reader]:
    """Of images and videos, in order."""
    return [
        VideoReader(named(name.names), name.fps) if isinstance(name, FrameNames) else named([name])[0] for name in names
    ]


def parse_record(line: bytes) -> dict[str, Any]:
    """A JSON object from bytes; SampleError where it is none."""
    try:
        record = json.loads(line)
        if b"\\ud" in line.lower():
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise SampleError(
            f"it holds {half}, half of a surrogate pair, which is no character", problem="lone_surrogate"
        ) from error
    except UnicodeError as error:
        raise SampleError(f"it is not UTF-8: {error}", problem="not_utf8") from error
    except (ValueError, RecursionError) as error:
        raise SampleError(f"it is not valid JSON: {error}", problem="invalid_json") from error
    if not isinstance(record, dict):
        raise SampleError(f"it is not a JSON object but {record!r:.80}", problem="invalid_json")
    return record


def image_names(record: dict[str, Any]) -> list[str]:
    """`images` or LLaVA's `image`, each a path or a list of paths."""
    paths = record.get("images", record.get("image", []))
    paths = [paths] if isinstance(paths, str) else paths or []
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise SampleError(f"'images' must be a list of paths, not {paths!r:.80}", problem="wrong_type")
    return paths
