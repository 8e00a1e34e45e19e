"""JSON files of checkpoints and Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is not there or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found
