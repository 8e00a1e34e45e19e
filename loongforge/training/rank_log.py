"""A process's own log: what it prints goes to the terminal and, without colours and live bars, to a file."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

_ERASE_LINE = re.compile(r".*(?:\r(?!\n)|\x1b\[2K)", re.DOTALL)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


class Tee(TextIOBase):
    """Writes to a terminal stream, and finished lines to a log file."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal, self._log, self._line = terminal, log, ""

    def write(self, text: str) -> int:
        """Writes to both; a line that is erased again (a live bar) never reaches the file."""
        written = self._terminal.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._log.write(_clean(line) + "\n")
        self._line = _ERASE_LINE.sub("", self._line)
        if lines:
            self._log.flush()
        return written

    def flush(self) -> None:
        """Flushes the terminal; the file is flushed with every line."""
        self._terminal.flush()

    def finish(self) -> None:
        """Writes an unfinished last line to the file."""
        if line := _clean(self._line):
            self._log.write(line + "\n")
        self._log.flush()

    def isatty(self) -> bool:
        """Whether the terminal is one."""
        return self._terminal.isatty()

    def fileno(self) -> int:
        """The terminal's."""
        return self._terminal.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)  # encoding, errors, buffer ...


def _clean(line: str) -> str:
    return _CONTROL.sub("", _ERASE_LINE.sub("", line.rstrip("\r")))


@contextmanager
def tee_output(path: Path) -> Iterator[None]:
    """Copies stdout and stderr of this process to a file (appended to) while the context lasts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(path.open("a", encoding="utf-8"))
        streams = [Tee(sys.stdout, log), Tee(sys.stderr, log)]
        for stream in streams:
            stack.callback(stream.finish)
        stack.enter_context(redirect_stdout(streams[0]))
        stack.enter_context(redirect_stderr(streams[1]))
        yield
