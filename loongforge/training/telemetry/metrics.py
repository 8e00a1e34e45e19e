"""metrics.jsonl, TensorBoard and W&B."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError


def _strict(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def cut_after(path: Path, step: int) -> None:
    """Removes what a killed run wrote after the step that it goes on from, and a line cut short by the kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


class MetricsWriter:
    """Writes one line per record. One process (rank 0) has one.

    Args:
        run_dir: The run.
        resume_step: Lines of later steps are cut away.
        tensorboard: Write `tensorboard/` too.
        wandb: W&B project, or None.
        name: Recipe, for W&B.
        config: The recipe as plain values, for W&B.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resume_step: int,
        tensorboard: bool,
        wandb: str | None,
        name: str,
        config: dict[str, Any],
    ) -> None:
        self.run_dir, self.resume_step = run_dir, resume_step
        path = run_dir / "metrics.jsonl"
        cut_after(path, resume_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed in close()
        self._wants_board = tensorboard
        self._board: _Board | None = None
        self._wandb = _start_wandb(wandb, name, run_dir, config) if wandb else None

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record; it has a `step`."""
        self._file.write(json.dumps(_strict(record)) + "\n")
        self._file.flush()
        if self._wants_board:
            self._to_board(record)
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in record.items() if k != "step"}, step=record["step"])

    def _to_board(self, record: dict[str, Any]) -> None:
        if self._board is None:
            self._board = _Board(self.run_dir / "tensorboard", self.resume_step)
        self._board.add(record)

    def close(self) -> None:
        """Ends all writers."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Board:
    """TensorBoard events through its own writer; torch's wrapper imports for seconds."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder))
        if resume_step:  # readers drop what a killed run wrote after this step
            session = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.add_event(self._event(session_log=session, step=resume_step + 1))

    def add(self, record: dict[str, Any]) -> None:
        numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
        values = [self._summary.Value(tag=tag, simple_value=float(value)) for tag, value in numbers.items()]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(summary=summary, step=record["step"], wall_time=time.time()))

    def close(self) -> None:
        self._writer.close()


def _start_wandb(project: str, name: str, run_dir: Path, config: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"logging.wandb={project} needs the package wandb: pip install 'loongforge[wandb]', or set it to null"
        ) from error
    return wandb.init(project=project, name=f"{name}-{run_dir.name}", dir=str(run_dir), config=config, resume="allow")
