"""Opens the data of a recipe, also where some of its files are broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from loongforge.config.errors import UserError
from loongforge.config.schema import SourceConfig
from loongforge.data.sources import Source, open_source, open_sources
from loongforge.data.sources.open import list_files


@dataclass
class Opened:
    """What could be opened."""

    sources: list[Source] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    """(source, file, why) of what could not."""


def open_whole_or_parts(spec: str | Sequence[SourceConfig], key: str, image_dir: str | None) -> Opened:
    """Opens data as a run does; where that fails for what is in a file, opens the other files one by one.

    Args:
        spec: `data.train` or `data.eval`.
        key: Its name.
        image_dir: `data.image_dir`.

    Raises:
        UserError: A path that does not exist, or a spec that makes no sense.
    """
    try:
        opened = open_sources(spec, key, image_dir)
        return Opened([source for source, _ in opened], [weight for _, weight in opened])
    except UserError:
        if not spec:
            raise
    entries = [SourceConfig(path=spec)] if isinstance(spec, str) else list(spec)
    if any(not 0 < entry.weight < float("inf") for entry in entries):
        open_sources(spec, key, image_dir)  # says so
    found = Opened()
    for entry in entries:
        _open_entry(entry, key, image_dir, found)
    return found


def _open_entry(entry: SourceConfig, key: str, image_dir: str | None, found: Opened) -> None:
    try:
        opened = [open_source(entry.path, key, image_dir)]
    except UserError as error:
        opened = _open_files(entry, key, image_dir, found, error)
    found.sources += opened
    found.weights += [entry.weight] * len(opened)


def _open_files(entry: SourceConfig, key: str, image_dir: str | None, found: Opened, whole: UserError) -> list[Source]:
    files = list_files(entry.path, key)
    opened, broken = [], []
    for file in files:
        try:
            opened.append(open_source(file, key, image_dir))
        except UserError as error:
            broken.append((entry.path, file, str(error)))
    if not broken:  # each can be read, but not together
        raise whole
    found.broken += broken
    return opened
