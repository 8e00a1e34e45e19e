"""What is printed reaches the log file, without what a live bar paints and erases."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from loongforge.training.rank_log import tee_output


def test_lines_are_copied_and_output_is_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "rank_0.log"
    for text in ("one", "two"):
        with tee_output(log):
            print(text)
            print(f"{text} error", file=sys.stderr, end="")
    assert log.read_text() == "one\none error\ntwo\ntwo error\n"
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_live_bar_stays_on_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    with tee_output(tmp_path / "log"):
        console = Console(file=sys.stdout, force_terminal=True, width=60)
        with Live("50 % done", console=console, auto_refresh=False, transient=True) as live:
            console.print("[red]step 1[/red] loss 2.0")
            live.update("60 % done", refresh=True)
            console.print("step 2 loss 1.0")
    assert terminal.getvalue().count("% done") > 2
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.strip()]
    assert lines == ["step 1 loss 2.0", "step 2 loss 1.0", "60 % done"]  # of the bar, only its last state
