"""Metadata of many samples in a few bytes each."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loongforge.data.sample import SampleMeta
from loongforge.data.sources.cache import smallest

_BAD = -1
_NUMBERS = 4  # of an image or a video: width, height, frames, frames in 1000 seconds


@dataclass(frozen=True)
class Totals:
    """Sums over samples."""

    text_tokens: int
    label_tokens: int
    images: int
    problems: dict[int, str]
    """Number of each bad sample, and why it is bad."""


class MetaColumns:
    """Metadata of numbered samples: 20 bytes each and 16 for every image. Safe to use from several threads."""

    def __init__(self, size: int):
        """Room for `size` samples, of which nothing is known yet; memory is taken as they come."""
        self._text = np.zeros(size, np.int32)  # 0: not known, _BAD: see _problems
        self._labels = np.zeros(size, np.int32)
        self._counts = np.zeros(size, np.int32)
        self._firsts = np.zeros(size, np.int64)  # into _sizes
        self._sizes = np.zeros((256, _NUMBERS), np.int32)
        self._used = 0
        self._problems: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._text)

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> MetaColumns:
        """What `arrays` gave."""
        columns = cls(0)
        columns._text, columns._labels = arrays["text"].astype(np.int32), arrays["labels"]
        columns._counts, columns._sizes = arrays["counts"], arrays["sizes"]
        columns._firsts = np.cumsum(columns._counts, dtype=np.int64) - columns._counts
        columns._used = len(columns._sizes)
        reasons = json.loads(arrays["reasons"].tobytes())
        columns._problems = dict(zip(arrays["bad"].tolist(), reasons, strict=True))
        columns._text[arrays["bad"]] = _BAD
        return columns

    def arrays(self) -> dict[str, np.ndarray]:
        """All that is known, for a file; every sample must be known."""
        assert self._text.all()
        counts = self._counts.astype(np.int64)
        order = np.arange(counts.sum()) + np.repeat(self._firsts - (np.cumsum(counts) - counts), counts)
        bad = sorted(self._problems)
        return {
            "text": smallest(np.maximum(self._text, 0)),
            "labels": smallest(self._labels),
            "counts": smallest(self._counts),
            "sizes": smallest(self._sizes[order]),
            "bad": np.array(bad, np.int64),
            "reasons": np.frombuffer(json.dumps([self._problems[i] for i in bad]).encode(), np.uint8),
        }

    def totals(self) -> Totals:
        """Sums over the samples that are known."""
        good = self._text > 0
        text, labels, images = (int(column[good].sum()) for column in (self._text, self._labels, self._counts))
        return Totals(text, labels, images, dict(self._problems))

    def get(self, index: int) -> SampleMeta | None:
        """What is known of a sample; None: nothing."""
        with self._lock:
            text = int(self._text[index])
            if text == _BAD:
                return SampleMeta(0, 0, (), self._problems[index])
            first, count = int(self._firsts[index]), int(self._counts[index])
            sizes = tuple(tuple(size if size[2] else size[:2]) for size in self._sizes[first : first + count].tolist())
            return SampleMeta(text, int(self._labels[index]), sizes) if text else None

    def put(self, index: int, meta: SampleMeta) -> None:
        """Remembers a sample; what is known already stays."""
        with self._lock:
            if self._text[index]:
                return
            if meta.problem is not None:
                self._problems[index] = meta.problem
                self._text[index] = _BAD
                return
            self._labels[index] = meta.label_tokens
            self._firsts[index], self._counts[index] = self._used, len(meta.image_sizes)
            self._append(meta.image_sizes)
            self._text[index] = meta.text_tokens

    def _append(self, sizes: Sequence[tuple[int, ...]]) -> None:
        end = self._used + len(sizes)
        if end > len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.zeros((max(end, len(self._sizes)), _NUMBERS), np.int32)])
        if sizes:
            self._sizes[self._used : end] = [(*size, 0, 0)[:_NUMBERS] for size in sizes]
        self._used = end
