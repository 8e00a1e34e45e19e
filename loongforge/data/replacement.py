"""The good sample of a position: its own, or the first good one of those that replace it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample
from loongforge.data.fetch import BadSampleError
from loongforge.data.order import SampleOrder
from loongforge.data.sources import Source

Found = TypeVar("Found")

MAX_ATTEMPTS = 100
"""Bad samples in a row, at one position, that are replaced before giving up."""


@dataclass(frozen=True)
class GoodSamples:
    """Which sample stands at a position; depends on the position and the data alone."""

    order: SampleOrder
    sources: Sequence[Source]
    skip: bool
    """Replace bad samples; otherwise the first one ends the run."""

    def at(self, position: int, step: int, bad: list[BadSample], get: Callable[[int, int], Found]) -> Found:
        """What `get(source, index)` gives for the first good sample.

        Args:
            position: Of the global order.
            step: For the record.
            bad: Takes note of what is left out.
            get: Raises BadSampleError for a bad sample.

        Raises:
            UserError: a bad sample that is not to be skipped, or too many of them.
        """
        source, index = self.order.at(position)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return get(source, index)
            except BadSampleError as error:
                if not (self.skip or error.drop):
                    raise error.as_user_error() from error
                source, index = self.order.replacement(position, attempt)
                bad.append(error.as_record(step, replaced_by=str(self.sources[source].locate(index))))
        raise UserError(
            f"{MAX_ATTEMPTS} samples of {self.sources[source].name} in a row are bad; the last one: "
            f"{bad[-1].key} of {bad[-1].shard}: {bad[-1].reason}"
        )
