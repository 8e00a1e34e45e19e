"""Where samples come from: shards and JSON files, read in any order by number."""

from loongforge.data.sources.base import Source
from loongforge.data.sources.open import open_source, open_sources

__all__ = ["Source", "open_source", "open_sources"]
