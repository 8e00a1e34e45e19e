"""`quarantine.jsonl`: samples left out of training, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from loongforge.config.errors import UserError
from loongforge.data.batch import BadSample


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
        self._torn = False
        if self.path.exists():
            self._read()

    def __len__(self) -> int:
        """Distinct bad samples so far."""
        return len(self._known)

    def record(self, bad: Iterable[BadSample]) -> list[BadSample]:
        """Writes the samples that were not known yet, and returns them.

        Args:
            bad: of one step, over all data-parallel ranks.

        Raises:
            UserError: more than `max_bad` distinct samples are bad; those at hand are written first.
        """
        new = []
        for sample in bad:
            if (sample.shard, sample.key) not in self._known:
                self._known.add((sample.shard, sample.key))
                new.append(sample)
        if new:
            self._append("".join(json.dumps(asdict(sample)) + "\n" for sample in new))
            self._check(new[-1])
        return new

    def _append(self, text: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("\n" + text if self._torn else text)
        self._torn = False

    def _check(self, last: BadSample) -> None:
        if len(self) > self.max_bad:
            raise UserError(
                f"{len(self)} bad samples, more than data.max_bad={self.max_bad} (listed in {self.path}); the last: "
                f"{last.key} of {last.shard}: {last.reason}. Mend the data, or raise data.max_bad"
            )

    def _read(self) -> None:
        """A line cut short by a killed process is passed over: its sample is found and written again."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known.add((entry["shard"], entry["key"]))
            except (ValueError, KeyError, TypeError):
                continue
