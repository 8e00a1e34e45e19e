"""Opens the data of a recipe, also where some of its files are broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from loongforge.config.errors import UserError
from loongforge.config.schema import SourceConfig
from loongforge.data.sources import Source, open_source, open_sources
from loongforge.data.sources.open import list_files
from loongforge.data.sources.shards import ShardSource
from loongforge.data.sources.tar_index import CutShardError


@dataclass
class Opened:
    """What could be opened."""

    sources: list[Source] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    """(source, file, why) of what could not."""


def open_whole_or_parts(
    spec: str | Sequence[SourceConfig], key: str, image_dir: str | None = None, index_dir: str | None = None
) -> Opened:
    """Opens data as a run does; where that fails for what is in a file, opens the other files one by one.

    Args:
        spec: `data.train` or `data.eval`.
        key: Its name.
        image_dir: `data.image_dir`.
        index_dir: `data.index_dir`.

    Raises:
        UserError: A path that does not exist, or a spec that makes no sense.
    """
    try:
        opened = open_sources(spec, key, image_dir, index_dir)
        return Opened([source for source, _ in opened], [weight for _, weight in opened])
    except UserError as error:
        entries = [SourceConfig(path=spec)] if isinstance(spec, str) else spec
        try:
            files = [(file, entry) for entry in entries for file in list_files(entry.path, key)]
        except UserError:
            raise error from None
        found = Opened()
        for file, entry in files:
            _open_file(file, entry, found, key, image_dir, index_dir)
        if not found.broken:  # each can be read, but not together
            raise
        return found


def _open_file(
    file: str, entry: SourceConfig, found: Opened, key: str, image_dir: str | None, index_dir: str | None
) -> None:
    try:
        source = open_source(file, key, image_dir, index_dir)
    except CutShardError as error:  # what is before the cut is checked like the rest
        found.broken.append((entry.path, file, str(error)))
        source = ShardSource.before_cut(file, error)
    except UserError as error:
        found.broken.append((entry.path, file, str(error)))
        return
    found.sources.append(source)
    found.weights.append(entry.weight)
