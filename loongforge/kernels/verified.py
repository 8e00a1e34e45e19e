"""What `loongforge backends verify` has passed on this machine: a small file per machine, in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from loongforge import __version__
from loongforge.kernels.backend import Backend


def folder() -> Path:
    """`$LOONGFORGE_CACHE`, or `loongforge` in the user's cache."""
    given = os.environ.get("LOONGFORGE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loongforge"


def machine(backend: Backend) -> dict[str, Any]:
    """What a measurement holds for: with another of these it is void."""
    return {
        "backend": backend.name,
        "host": platform.node(),
        "processor": platform.machine(),
        "evidence": list(backend.detect().evidence),
        "versions": dict(backend.versions()),
        "loongforge": __version__,
    }


def _path(backend: Backend) -> Path:
    digest = hashlib.sha256(json.dumps(machine(backend), sort_keys=True).encode()).hexdigest()[:16]
    return folder() / "verified" / f"{backend.name}-{digest}.json"


def keep(backend: Backend, report: dict[str, Any]) -> Path:
    """Stores a report that passed."""
    path = _path(backend)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return path


def measured(backend: Backend) -> dict[tuple[str, str], str]:
    """(op, implementation) that passed on this machine, with these versions; and when."""
    try:
        report = json.loads(_path(backend).read_text(encoding="utf-8"))
        return {(op, name): str(report["date"]) for op, name in report["measured"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
