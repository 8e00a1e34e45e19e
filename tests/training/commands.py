"""The command line within ranks that have imported everything already; they join their world as under torchrun."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO


def command(*argv: str) -> str:
    """What `loongforge ARGV` prints on this rank; its errors are in the rank's log.

    Raises:
        RuntimeError: it failed; its peers, which may wait for it, are then ended by their pool.
    """
    from loongforge.cli.main import main

    with redirect_stdout(StringIO()) as printed:
        code = main(argv)
    if code:
        raise RuntimeError(f"exit code {code}: loongforge {' '.join(argv)}")
    return printed.getvalue()
