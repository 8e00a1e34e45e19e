"""Packed rows in shards: `KEY.0.json`, `KEY.0.0.png`, `KEY.1.json`, ... are the samples 0, 1, ... of the row KEY.

Each has the members that it would have alone, behind its number.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence

from PIL import Image

from loongforge.config.errors import UserError
from loongforge.data.sample import RawSample, SampleError
from loongforge.data.sources.tar_index import Member

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}


def documents_of(members: Sequence[Member]) -> list[list[Member]]:
    """Members of each sample of a row, without its number; none where the members are those of one sample.

    Raises:
        SampleError: a sample of a row is missing.
    """
    suffixes = {member[0] for member in members}
    if not suffixes & {"0.json", "0.txt"} or suffixes & {"json", "txt"}:
        return []
    found: dict[str, list[Member]] = {}
    for suffix, *place in members:
        number, _, rest = suffix.partition(".")
        found.setdefault(number, []).append((rest, *place))  # type: ignore[arg-type]
    if sorted(found) != sorted(map(str, range(len(found)))):
        raise SampleError(
            f"the samples of its row are numbered {sorted(found)}, not 0, 1, ...", problem="shard_members"
        )
    return [found[str(number)] for number in range(len(found))]


def row_members(documents: Iterable[RawSample]) -> dict[str, bytes]:
    """{suffix: content} of a row of samples, for `write_shards`. Images are copied as they are.

    Raises:
        UserError: one is a row already.
    """
    members: dict[str, bytes] = {}
    for number, raw in enumerate(documents):
        if raw.documents:
            raise UserError(f"{raw.id} is a packed row already; name the data that it was made from")
        said = {"text": raw.text} if raw.text is not None else {"messages": raw.messages}
        members[f"{number}.json"] = json.dumps({"id": raw.id, **said}, ensure_ascii=False, default=str).encode()
        for place, read in enumerate(raw.images):
            content = read()
            members[f"{number}.{place}.{_suffix(content)}"] = content
    return members


def _suffix(content: bytes) -> str:
    """What the image is; readers go by its content."""
    with Image.open(io.BytesIO(content)) as image:
        return _SUFFIXES.get(image.format or "", "png")
