"""Errors with one clear message and no traceback: the user's to mend (exit code 2), and a few others (1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message names the key, file or sample, the value, what is allowed, and the fix."""


class RunError(RuntimeError):
    """Something that failed while running, and whose message says more than a traceback. Exit code 1."""


def closest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name nearest to `name`, or None where none is near."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or the empty string."""
    match = closest(name, allowed)
    return f" Did you mean '{match}'?" if match else ""
