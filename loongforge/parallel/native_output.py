"""Keeps what native libraries print out of stdout, where commands print what other programs read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def native_output_on_stderr() -> Iterator[None]:
    """Sends to stderr what is written to stdout past Python: gloo of torch 2.9 reports each group that it connects."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        stdout = os.dup(1)
    except OSError:  # closed: nobody reads it
        yield
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
