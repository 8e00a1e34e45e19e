"""Videos that a record gives beside its messages, with `<video>` where they go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from loongforge.data.sample import SampleError

IMAGE, VIDEO = "<image>", "<video>"
_PLACES = re.compile(f"({IMAGE}|{VIDEO})")


def videos_of(record: dict[str, Any]) -> list[Any]:
    """`videos`: for each a list of its frames' paths, or `{"video": [paths], "fps": 2}`.

    Raises:
        SampleError: it is no list.
    """
    videos = record.get("videos") or []
    if not isinstance(videos, list):
        raise SampleError(
            f"'videos' must be a list of lists of frames' paths, not {videos!r:.80}", problem="wrong_type"
        )
    return videos


def place_videos(messages: list[dict[str, Any]], images: list[str], videos: list[Any]) -> list[dict[str, Any]]:
    """The messages in parts that hold images and videos, in place of texts with placeholders.

    Args:
        messages: Texts with `<image>` and `<video>`.
        images: Paths of all images, in order.
        videos: From `videos_of`.

    Raises:
        SampleError: there are more or fewer placeholders than images or videos.
    """
    spelled = [video if isinstance(video, dict) else {"video": video} for video in videos]
    waiting: dict[str, Iterator[dict[str, Any]]] = {
        IMAGE: iter([{"type": "image", "image": name} for name in images]),
        VIDEO: iter([{"type": "video", **video} for video in spelled]),
    }
    found = [{**message, "content": list(_parts(message.get("content"), waiting))} for message in messages]
    for placeholder, rest in waiting.items():
        left = len(list(rest))
        if left:
            raise SampleError(f"{left} of its {placeholder[1:-1]}s have no {placeholder}", problem="image_count")
    return found


def _parts(content: Any, waiting: dict[str, Iterator[dict[str, Any]]]) -> Iterator[Any]:
    if not isinstance(content, str):
        raise SampleError("it gives videos beside its messages, and parts inside; give videos in parts too")
    for piece in _PLACES.split(content):
        if piece in waiting:
            part = next(waiting[piece], None)
            if part is None:
                raise SampleError(f"it has more {piece} than {piece[1:-1]}s", problem="image_count")
            yield part
        elif piece:
            yield {"type": "text", "text": piece}
