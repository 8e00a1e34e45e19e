"""Images that a record names: paths beside it, or whole in a `data:` URI."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from loongforge.data.sample import SampleError
from loongforge.data.sources.files import FileReader, is_url, local_path
from loongforge.data.video import FrameNames, frame_names

Reader = Callable[[], bytes]


class ImageFolder:
    """Makes readers of the images that records name."""

    def __init__(self, folder: str):
        """Image paths are relative to `folder` and must not lead out of it: data from elsewhere reads no other file."""
        self.folder = folder if is_url(folder) else os.path.abspath(folder)
        self._reader = FileReader()

    def readers(self, names: Sequence[str], max_bytes: int) -> list[Reader]:
        """A reader of each image.

        Args:
            names: paths, or `data:` URIs.
            max_bytes: an image that is larger is refused before it is read.

        Raises:
            SampleError: a name leads out of the folder or into the network.
        """
        return [self._reader_of(name, max_bytes) for name in names]

    def _reader_of(self, name: str, max_bytes: int) -> Reader:
        if name.startswith("data:"):
            return partial(decode_data_uri, name)
        if urlsplit(name).scheme in ("http", "https"):
            raise SampleError(
                f"image '{name:.200}' is in the web; images are not downloaded: save it and name the file",
                problem="image_path",
            )
        return partial(self._read, self._inside(local_path(name)), max_bytes)

    def _inside(self, path: str) -> str:
        base = self.folder.rstrip("/")
        if is_url(base):
            inside = not path.startswith("/") and ".." not in path.split("/")
            joined = path if is_url(path) else f"{base}/{path}"
            fine = inside and joined.startswith(f"{base}/")
        else:
            joined = os.path.normpath(os.path.join(self.folder, path))
            fine = not is_url(path) and os.path.commonpath([self.folder, joined]) == self.folder
        if not fine:
            raise SampleError(
                f"image path '{path}' leads out of {self.folder}; set data.image_dir to a folder that holds the images",
                problem="image_path",
            )
        return joined

    def _read(self, path: str, max_bytes: int) -> bytes:
        """One byte more than allowed tells a file that is too large from one that just fits."""
        try:
            if is_url(path):
                content = self._reader.read(path, 0, max_bytes + 1)
            else:
                with open(path, "rb") as file:
                    content = file.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            raise SampleError(
                f"cannot read image {path}: {getattr(error, 'strerror', None) or error}", problem="missing_image"
            ) from error
        if len(content) > max_bytes:
            raise SampleError(
                f"image {path} has more than {max_bytes} bytes (data.max_sample_bytes)", problem="too_many_bytes"
            )
        return content


def decode_data_uri(uri: str) -> bytes:
    """The bytes of `data:image/png;base64,...`.

    Raises:
        SampleError: it is not one.
    """
    head, comma, body = uri.partition(",")
    if not comma:
        raise SampleError(f"'{uri:.60}' is not a data URI; expected data:image/png;base64,...", problem="image_path")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote(body), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"the data URI '{uri:.60}' is not base64: {error}", problem="image_path") from error


def take_references(
    messages: list[dict[str, Any]], *, given: bool
) -> tuple[list[dict[str, Any]], list[str | FrameNames]]:
    """(messages whose image parts are bare, what these parts named), in order.

    Args:
        messages: with parts like OpenAI's `{"type": "image_url", "image_url": {"url": ...}}`, or transformers'
            `{"type": "image", "image" | "url" | "path": ...}` and `{"type": "image", "base64": ...}`; or with the
            frames of a video, `{"type": "video", "video": [paths], "fps": 2}`, which stands where an image would.
        given: the sample has its images elsewhere, so that parts of type `image` say where they go and no more.

    Raises:
        SampleError: a part without a URL, or one with where images are given elsewhere.
    """
    names: list[str | FrameNames] = []
    bare = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            message = {**message, "content": [_bare(part, names, given) for part in content]}
        bare.append(message)
    return bare, names


def _bare(part: Any, names: list[str | FrameNames], given: bool) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "video":
        if given:
            raise SampleError(
                "it gives images beside its messages and a video inside; give images in parts too",
                problem="image_count",
            )
        names.append(frame_names(part))
        return {"type": "image"}
    if kind == "image_url":
        if given:
            raise SampleError(
                f"it gives images beside its messages and by a part {part!r:.80}; give them in one way",
                problem="image_count",
            )
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if not isinstance(url, str) or not url:
            raise SampleError(
                f"a part of type 'image_url' must hold {{'image_url': {{'url': ...}}}}, not {part!r:.80}",
                problem="wrong_type",
            )
        names.append(url)
        return {"type": "image"}
    if kind == "image" and not given:
        for key in ("image", "url", "path", "base64"):
            if isinstance(part.get(key), str) and part[key]:
                names.append(f"data:;base64,{part[key]}" if key == "base64" else part[key])
                return {"type": "image"}
    return part
