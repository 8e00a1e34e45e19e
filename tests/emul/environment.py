"""Processes that find the emulator of torch_xmlir."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.repo.files import REPO

SITE = Path(__file__).parent / "site"
_ENTRY = "[loongforge.backends]\nkunlun = loongforge_backends.kunlun:KunlunBackend\n"


def emulated(folder: Path, **changes: str) -> dict[str, str]:
    """An environment; `folder` gets the entry point, for installations that are older than the backend."""
    info = folder / "kunlun_entry-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kunlun-entry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_ENTRY)
    path = os.pathsep.join([str(SITE), str(folder), *filter(None, sys.path), str(REPO)])
    own = {"PYTHONPATH": path, "LF_KUNLUN_EMULATE": "1", "LOONGFORGE_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **changes}


def run(environ: dict[str, str], *command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Python with that environment."""
    return subprocess.run(
        [sys.executable, *command], env=environ, capture_output=True, text=True, timeout=timeout, check=False, cwd=REPO
    )
