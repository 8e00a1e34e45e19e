"""Log files: one for each rank, in the run's folder."""

from __future__ import annotations

import logging
from pathlib import Path

_FORMAT = "%(asctime)s rank %(rank)d %(levelname)s %(name)s: %(message)s"


def setup_logging(run_dir: Path, rank: int) -> None:
    """Sends this process's log and Python warnings to `logs/rank_N.log`. Called again, it changes the file."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / f"rank_{rank}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT, defaults={"rank": rank}))
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
        other.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
