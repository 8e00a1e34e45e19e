"""What torch itself says on stderr, which differs between its versions."""

from __future__ import annotations

import re

_NOTES = re.compile(r"^(W\d{4} [\d:.]+ \d+ torch/|\[Gloo\] Rank \d+ is connected ).*\n", re.MULTILINE)


def without_notes(text: str) -> str:
    """Without torch's warning that it finds CUDA's tools and no GPU, and gloo's reports of connections (torch 2.9)."""
    return _NOTES.sub("", text)
