"""Which sample stands at which position: a pure function of the seed, whatever the ranks.

Positions count the samples that all ranks together have seen since the start of training. Only raw Philox bits
and `SeedSequence` are used: numpy keeps those streams the same in every version, but not its distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

_PERMUTATION, _REPLACEMENT = 0, 1  # what a stream of random bits is for


class SampleOrder:
    """The endless order of samples. Each source is gone through wholly, epoch by epoch, at its share of positions."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *, seed: int, shuffle: bool = True):
        """Args:

        sizes: samples of each source, each at least 1.
        weights: shares of the sources, relative to each other; a source is drawn from at its exact share
            over whole rounds, and never further from it than there are sources.
        seed: decides everything.
        shuffle: a new permutation of each source in each epoch; otherwise its own order.
        """
        assert len(sizes) == len(weights)
        assert min(sizes) > 0
        assert min(weights) > 0
        self.sizes = list(sizes)
        self.seed = seed
        self.shuffle = shuffle
        shares = [Fraction(str(weight)) for weight in weights]
        # share of source i among the sources i, i + 1, ...
        self._shares = [share / sum(shares[i:]) for i, share in enumerate(shares)]
        self._permutation = lru_cache(maxsize=2 * len(sizes))(self._draw_permutation)

    def at(self, position: int) -> tuple[int, int]:
        """(source, index in it) of a position."""
        source, turn = self._turn(position)
        epoch, place = divmod(turn, self.sizes[source])
        return source, int(self._permutation(source, epoch)[place]) if self.shuffle else place

    def epoch(self, position: int) -> float:
        """Epochs of the source that is furthest, after `position` samples."""
        return max(self._epochs(position))

    @property
    def shares(self) -> list[str]:
        """Exact share of each source among those from it on."""
        return [str(share) for share in self._shares]

    def once(self) -> int:
        """Positions after which every sample of every source has come, for the first time."""
        low, high = 0, sum(self.sizes)
        while min(self._epochs(high)) < 1:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if min(self._epochs(middle)) >= 1 else (middle, high)
        return high

    def _epochs(self, position: int) -> list[float]:
        """Of each source, after `position` samples."""
        counts, left = [], position
        for share in self._shares:
            counts.append(int(left * share))
            left -= counts[-1]
        return [count / size for count, size in zip(counts, self.sizes, strict=True)]

    def replacement(self, position: int, attempt: int) -> tuple[int, int]:
        """The sample that is tried at `position` after `attempt` (1, 2, ...) bad ones; of the same source."""
        source, _ = self._turn(position)
        bits = np.random.SeedSequence((self.seed, _REPLACEMENT, source, position, attempt)).generate_state(2, np.uint64)
        return source, (int(bits[0]) << 64 | int(bits[1])) % self.sizes[source]

    def _turn(self, position: int) -> tuple[int, int]:
        """(source, how often it came before): source i takes its share of what the sources before it leave."""
        for source, share in enumerate(self._shares):
            before = position * share.numerator // share.denominator
            if (position + 1) * share.numerator // share.denominator > before:
                return source, before
            position -= before
        raise AssertionError("the last source takes all that is left")

    def _draw_permutation(self, source: int, epoch: int) -> np.ndarray:
        bits = np.random.Philox(np.random.SeedSequence((self.seed, _PERMUTATION, source, epoch)))
        return np.argsort(bits.random_raw(self.sizes[source]), kind="stable")
