"""Videos as lists of frame images: one content of bytes that everything else handles as it handles an image."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loongforge.data.sample import SampleError

DEFAULT_FPS = 2.0
"""Frames of a second where a sample does not say."""

_MAGIC = b"loongforge frames\0"


@dataclass(frozen=True)
class FrameNames:
    """What a record says of a video."""

    names: tuple[str, ...]
    fps: float


@dataclass(frozen=True)
class VideoReader:
    """Reads the frames of a video, in order."""

    frames: Sequence[Callable[[], bytes]]
    fps: float

    def __call__(self) -> bytes:
        """All of them in one."""
        return join_frames([read() for read in self.frames], self.fps)


def join_frames(frames: Sequence[bytes], fps: float) -> bytes:
    """Encoded images as one content."""
    head = json.dumps({"fps": fps, "sizes": [len(frame) for frame in frames]}).encode()
    return b"".join([_MAGIC, struct.pack("<I", len(head)), head, *frames])


def is_video(content: bytes) -> bool:
    """Whether a content is a video's."""
    return content.startswith(_MAGIC)


def split_frames(content: bytes) -> tuple[list[bytes], float]:
    """(encoded frames, frames of a second) of what `join_frames` gave."""
    start = len(_MAGIC) + 4
    (length,) = struct.unpack("<I", content[len(_MAGIC) : start])
    head, at, frames = json.loads(content[start : start + length]), start + length, []
    for size in head["sizes"]:
        frames.append(content[at : at + size])
        at += size
    return frames, float(head["fps"])


def frame_names(part: dict[str, object]) -> FrameNames:
    """Of a part `{"type": "video", "video": [paths of frames], "fps": 2}`.

    Raises:
        SampleError: it is no list of paths, or `fps` is no positive number.
    """
    names, fps = part.get("video"), part.get("fps", DEFAULT_FPS)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise SampleError(
            f"a part of type 'video' must hold {{'video': [paths of its frames as images]}}, not {part!r:.80}; "
            "video files are not decoded here",
            problem="wrong_type",
        )
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise SampleError(f"'fps' of a video must be a positive number, not {fps!r:.40}", problem="wrong_type")
    return FrameNames(tuple(names), float(fps))
