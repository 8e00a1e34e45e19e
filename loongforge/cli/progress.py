"""Progress bars of verbs that read data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


def bar(title: str) -> Callable[[int], AbstractContextManager[Callable[[int], None]]]:
    """A bar on standard error where that is a terminal, so that the output can still be piped.

    Returns:
        Given how many there are to do, it shows the bar and gives what is to be called with the number just done.
    """

    @contextmanager
    def watch(total: int) -> Iterator[Callable[[int], None]]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        text = TextColumn("{task.description}")
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        hidden = total == 0 or not console.is_terminal
        with Progress(*columns, console=console, disable=hidden, transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield lambda number: progress.advance(task, number)

    return watch
