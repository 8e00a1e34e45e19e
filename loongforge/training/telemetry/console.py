"""What people see of a run: rich in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from loongforge.data.preview import Preview
from loongforge.data.show.terminal import legend, sample_text
from loongforge.training.step_times import PhaseShare

_COLUMNS = ("step", "loss", "lr", "grad norm", "tokens/s", "ms/step", "wait", "GiB", "left out", "eta")
_MOST_PIECES = 160  # of a sample that is shown
_FIRST = 3  # steps that are always shown


def _short(number: float) -> str:
    """1.86 M, 12.3 G ..."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 999.5:  # else three digits round up to 1e+03
            return f"{number:.3g}{' ' if unit else ''}{unit}"
        number /= 1000
    return f"{number:.3g} P"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Console:
    """Rank 0's voice.

    Args:
        mode: `rich`, `plain`, or `auto`: rich where the output is a terminal.
        total_steps: Steps of the whole run.
        every: Steps between lines; the first few and the last are always shown.
    """

    def __init__(self, *, mode: str, total_steps: int, every: int) -> None:
        self.total_steps, self.every = total_steps, every
        terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.rich = mode == "rich" or (mode == "auto" and terminal)
        self.out = RichConsole(force_terminal=self.rich or None, highlight=False, soft_wrap=not self.rich)
        self._live: Live | None = None
        self._first = 0
        self._began = time.perf_counter()
        self._seen_header = False

    def info(self, text: str) -> None:
        """A line of text."""
        self.out.print(Text(text))

    def warning(self, text: str) -> None:
        """A line that should be noticed."""
        self.out.print(Text(f"warning: {text}", style="yellow"))

    def model(self, rows: list[dict[str, Any]]) -> None:
        """The composed model, a row for each component."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("component", "type", "layout", "dtype"):
            table.add_column(name)
        for name in ("parameters", "trained", "FLOPs/token"):
            table.add_column(name, justify="right")
        for row in rows:
            trained = {"whole": _short(row["params"]), "partly": "partly", "no": "frozen"}[row["trains"]]
            name, place = row["component"], row["layout"]
            table.add_row(
                name, row["type"], place, row["dtype"], _short(row["params"]), trained, _short(row["flops_per_token"])
            )
        total, trained = sum(r["params"] for r in rows), sum(r["params"] for r in rows if r["trains"] == "whole")
        more = "+" if any(row["trains"] == "partly" for row in rows) else ""
        flops = _short(sum(row["flops_per_token"] for row in rows))
        table.add_row("all", "", "", "", _short(total), _short(trained) + more, flops)
        self.out.print(table)

    def sample(self, shown: Preview) -> None:
        """One processed sample."""
        self.out.print(sample_text(shown, coloured=self.rich, most=_MOST_PIECES))
        self.out.print(Text(legend(coloured=self.rich), style="dim"))

    def start(self, step: int) -> None:
        """Training begins after `step` steps."""
        self._first, self._began = step, time.perf_counter()
        if not self.rich or step >= self.total_steps:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]}"))
        self._progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.out
        )
        self._task = self._progress.add_task("train", total=self.total_steps, completed=step, loss="-")
        self._live = Live(self._progress, console=self.out, refresh_per_second=4)
        self._live.start()

    def step(self, record: dict[str, Any]) -> None:
        """After a step: moves the bar, and now and then writes a line."""
        step = record["step"]
        if self._live is not None:
            self._progress.update(self._task, completed=step, loss=f"{record['loss']:.4f}")
        if step - self._first <= _FIRST or step % self.every == 0 or step == self.total_steps:
            self._line(record)

    def _line(self, record: dict[str, Any]) -> None:
        if not self._seen_header:
            self._seen_header = True
            self.out.print(Text(_aligned(_COLUMNS), style="bold"))
        step, seconds = record["step"], record["step_time_s"]
        left = (time.perf_counter() - self._began) / (step - self._first) * (self.total_steps - step)
        cells = (
            f"{step}/{self.total_steps}",
            f"{record['loss']:.4f}",
            f"{record['lr']:.2e}",
            f"{record['grad_norm']:.3f}",
            _short(record["tokens_per_s"]),
            f"{seconds * 1e3:.0f}",
            f"{record['data_wait_s'] / seconds:.0%}",
            f"{record['memory_gib']:.2f}",
            str(record["left_out"]),
            _clock(left) if math.isfinite(left) else "-",
        )
        self.out.print(Text(_aligned(cells)))

    def evaluation(self, record: dict[str, Any], answers: list[tuple[str, str, str]]) -> None:
        """After an evaluation: the score, and (question, answer, reference) of some samples."""
        self.out.print(
            Text(
                f"evaluation after step {record['step']}: exact match {record['eval/exact_match']:.4f}, "
                f"loss {record['eval/loss']:.4f}, {record['eval/samples']} samples",
                style="bold cyan",
            )
        )
        for question, answer, reference in answers:
            right = answer == reference
            wanted = "" if right else f"  (right: {' '.join(reference.split())})"
            asked, said = (" ".join(text.split()) for text in (question, answer))
            line = f"  {'+' if right else '-'} {asked}  ->  {said or '(nothing)'}{wanted}"
            self.out.print(Text(line, style="green" if right else "red"))

    def phases(self, shares: Sequence[PhaseShare]) -> None:
        """Where the time of a step went; nothing where there was none."""
        self._stop_live()
        whole = sum(share.mean for share in shares)
        several = any(share.most > share.mean for share in shares)
        if not shares:
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("phase of a step")
        for name in ("ms", "share", *(["slowest rank"] if several else [])):
            table.add_column(name, justify="right")
        for share in shares:
            slowest = [f"{share.most * 1e3:.1f} (rank {share.rank})"] if several else []
            table.add_row(share.phase, f"{share.mean * 1e3:.1f}", f"{share.mean / whole:.1%}", *slowest)
        table.add_row("step", f"{whole * 1e3:.1f}", "100.0%", *([""] if several else []))
        self.out.print(table)

    def report(self, rows: list[tuple[str, str]], command: str) -> None:
        """At the end: what came out, and the command to try it."""
        self._stop_live()
        width = max(len(name) for name, _ in rows)
        self.out.print(Text("done", style="bold"))
        for name, value in rows:
            self.out.print(Text(f"  {name:<{width}}  {value}"))
        self.out.print(Text(f"  {'try it':<{width}}  {command}", style="bold"))

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def close(self) -> None:
        """Ends the live bar."""
        self._stop_live()


def _aligned(cells: tuple[str, ...]) -> str:
    widths = (11, 8, 9, 9, 9, 8, 5, 6, 8, 8)
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
