"""Life of a checkpoint: written aside, described by a manifest, renamed into place, deleted when it is old.

A folder is a checkpoint when its manifest, written last, names every file with its size. A run that is killed at any
moment leaves at most folders whose names begin with a dot, which nothing ever takes for checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loongforge.config.errors import UserError

MANIFEST = "manifest.json"
LATEST = "LATEST"
FORMAT = 1
_HASHED_UP_TO = 1 << 20
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    step: int
    """Optimizer steps made when it was written."""
    meta: dict[str, Any]


@dataclass
class Found:
    """The newest whole checkpoint, and what was passed over on the way to it."""

    checkpoint: Checkpoint | None
    warnings: list[str] = field(default_factory=list)
    """A line for each folder that is newer but not whole, with the reason."""


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        root: `<run>/checkpoints`.
        keep: The newest so many stay.
    """

    def __init__(self, root: Path, keep: int) -> None:
        self.root, self.keep = root, keep

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        meta: dict[str, Any],
        *,
        is_writer: bool,
        barrier: Callable[[], None],
    ) -> Path:
        """Writes a checkpoint. Collective: every rank calls it.

        Args:
            step: Optimizer steps made.
            write: Puts this rank's files into a folder.
            meta: Goes into the manifest.
            is_writer: One rank makes, describes and publishes the folder.
            barrier: Returns when every rank has called it.

        Returns:
            The checkpoint's folder.
        """
        final = self.root / f"step_{step:08d}"
        aside = self.root / f".{final.name}.writing"
        if is_writer:
            self.root.mkdir(parents=True, exist_ok=True)
            self._clear_leftovers()
            aside.mkdir()
        barrier()
        write(aside)
        barrier()
        if is_writer:
            _describe(aside, step, meta)
            self._publish(aside, final)
        barrier()
        return final

    def _clear_leftovers(self) -> None:
        """Dot folders are what a killed run was writing or deleting."""
        for path in self.root.glob(".step_*"):
            shutil.rmtree(path)

    def _publish(self, aside: Path, final: Path) -> None:
        if final.exists():  # saved again after going on from an older step
            self._delete(final)
        aside.rename(final)
        _sync(self.root)
        pointer = self.root / f".{LATEST}"
        pointer.write_text(final.name + "\n")
        _sync(pointer)
        pointer.replace(self.root / LATEST)
        _sync(self.root)
        folders = self._folders()
        place = folders.index(final)  # what is newer belongs to steps that the run went back behind
        for other in folders[:place] + folders[place + self.keep :]:
            self._delete(other)

    def _delete(self, path: Path) -> None:
        """Renamed first, so that a kill in between leaves nothing that looks whole."""
        doomed = path.with_name(f".{path.name}.deleting")
        path.rename(doomed)
        shutil.rmtree(doomed)

    def _folders(self) -> list[Path]:
        """Folders that are named like checkpoints, the newest first."""
        if not self.root.is_dir():
            return []
        named = [(int(m.group(1)), path) for path in self.root.iterdir() if (m := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(named, reverse=True)]

    def latest(self) -> Found:
        """The newest folder that is whole. LATEST is for people: it may lag behind after a kill."""
        warnings: list[str] = []
        for path in self._folders():
            problem = find_problem(path)
            if problem is None:
                return Found(_read(path), warnings)
            warnings.append(f"{path} is not used: {problem}")
        return Found(None, warnings)


def _describe(path: Path, step: int, meta: dict[str, Any]) -> None:
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        _sync(file)
        entry: dict[str, Any] = {"bytes": file.stat().st_size}
        if entry["bytes"] <= _HASHED_UP_TO:
            entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        files[file.relative_to(path).as_posix()] = entry
    manifest = {"format": FORMAT, "step": step, "meta": meta, "files": files}
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(path / MANIFEST)
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find_problem(path: Path) -> str | None:
    """Why a folder is not a whole checkpoint; None where it is one."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"].items()
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was not written to the end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    if manifest.get("format") != FORMAT:
        return f"its format is {manifest.get('format')}; this loongforge reads {FORMAT}"
    for name, entry in files:
        problem = _file_problem(path / name, entry)
        if problem:
            return f"{name} {problem}"
    return None


def _file_problem(file: Path, entry: dict[str, Any]) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes instead of {entry['bytes']}"
    if "sha256" in entry and hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
        return "has other contents than when it was written"
    return None


def _read(path: Path) -> Checkpoint:
    manifest = json.loads((path / MANIFEST).read_text())
    return Checkpoint(path, manifest["step"], manifest["meta"])


def resolve(path: Path) -> Checkpoint:
    """The checkpoint that a user means by a run, its `checkpoints` folder, or a checkpoint.

    Raises:
        UserError: there is none, or the one named is not whole.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run, or a checkpoint of one")
    if (path / MANIFEST).exists() or _NAME.fullmatch(path.name):
        problem = find_problem(path)
        if problem:
            raise UserError(f"{path} is not a whole checkpoint: {problem}")
        return _read(path)
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = CheckpointStore(root, keep=1).latest()
    if found.checkpoint is None:
        reasons = "".join(f"\n  - {line}" for line in found.warnings)
        raise UserError(f"{path} holds no checkpoint (looked for step_*/{MANIFEST} in {root}){reasons}")
    return found.checkpoint
