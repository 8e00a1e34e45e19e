"""`quarantine.jsonl`: samples left out of training, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample

MIN_SEEN = 1000
"""Samples after which `data.max_bad_ratio` is looked at."""


def check_ratio(left_out: int, used: int, max_ratio: float, last: BadSample) -> None:
    """Stops a run that leaves out too much.

    Args:
        left_out: samples so far that were left out, each as often as it was met.
        used: samples so far that were trained on.
        max_ratio: `data.max_bad_ratio`.
        last: one of this step's, for the message.

    Raises:
        UserError: more than that part of all samples so far was left out, and there were at least `MIN_SEEN`.
    """
    seen = left_out + used
    if seen >= MIN_SEEN and left_out > max_ratio * seen:
        raise UserError(
            f"{left_out} of the first {seen} samples ({left_out / seen:.1%}) were left out, more than "
            f"data.max_bad_ratio={max_ratio:g} (listed in quarantine.jsonl); the last: {last.key} of {last.shard}: "
            f"{last.reason}. Mend the data (`loongforge data check` lists what is wrong), or raise data.max_bad_ratio"
        )


class QuarantineLedger:
    """A file with one JSON line per distinct bad sample. One process (rank 0) writes it."""

    def __init__(self, path: str | os.PathLike[str], max_bad: int):
        """Args:

        path: the file; lines of an earlier part of the run are kept and counted.
        max_bad: `data.max_bad`.
        """
        self.path = Path(path)
        self.max_bad = max_bad
        self._known: set[tuple[str, str]] = set()
        self._num_bad = 0
        self._torn = False
        if self.path.exists():
            self._read()

    def __len__(self) -> int:
        """Distinct samples left out so far."""
        return len(self._known)

    def record(self, bad: Iterable[BadSample]) -> list[BadSample]:
        """Writes the samples that were not known yet, and returns them.

        Args:
            bad: of one step, over all data-parallel ranks.

        Raises:
            UserError: more than `max_bad` distinct samples are bad (dropped ones do not count); those at hand are
                written first.
        """
        new = [sample for sample in bad if self._add(sample.shard, sample.key, sample.dropped)]
        if new:
            self._append("".join(json.dumps(_entry(sample)) + "\n" for sample in new))
            self._check(new[-1])
        return new

    def _add(self, shard: str, key: str, dropped: bool) -> bool:
        """Whether the sample is new."""
        if (shard, key) in self._known:
            return False
        self._known.add((shard, key))
        self._num_bad += not dropped
        return True

    def _append(self, text: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" + text if self._torn else text)
        self._torn = False

    def _check(self, last: BadSample) -> None:
        if self._num_bad > self.max_bad:
            raise UserError(
                f"{self._num_bad} bad samples, more than data.max_bad={self.max_bad} (listed in {self.path}); "
                f"the last: {last.key} of {last.shard}: {last.reason}. Mend the data, or raise data.max_bad"
            )

    def _read(self) -> None:
        """A line cut short by a killed process is passed over: its sample is found and written again."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._add(entry["shard"], entry["key"], entry.get("dropped", False))
            except (ValueError, KeyError, TypeError):
                continue


def _entry(sample: BadSample) -> dict[str, Any]:
    """`dropped` is written only where it is true."""
    return {key: value for key, value in asdict(sample).items() if key != "dropped" or value}
