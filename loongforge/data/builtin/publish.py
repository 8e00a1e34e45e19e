"""A folder that appears complete or not at all: temporary folder, manifest, rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from loongforge.config.errors import UserError

MANIFEST = "manifest.json"


def publish(name: str, version: int, folder: Path, write: Callable[[Path], None]) -> Path:
    """Returns `folder` holding data set `name`, after writing it with `write(temporary folder)` where it is missing.

    Raises:
        UserError: `folder` cannot be written, is damaged, or holds something else.
    """
    if _complete(name, version, folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not _complete(name, version, folder):
                _write_and_rename(name, version, folder, write)
    except OSError as error:
        raise UserError(
            f"cannot write data set '{name}' to {folder}: {error.strerror or error}; "
            "choose another folder (data.dir, or --out)"
        ) from error
    return folder


def _complete(name: str, version: int, folder: Path) -> bool:
    """Whether the data set is there; raises where the folder holds anything but it or nothing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = f"remove {folder} and build again (loongforge data build {name} --out {folder}), or choose another folder"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found, files = (manifest["name"], manifest["version"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not data set '{name}': it has no readable {MANIFEST}; {remedy}") from error
    if found != (name, version):
        raise UserError(f"{folder} holds '{found[0]}' version {found[1]}, not '{name}' version {version}; {remedy}")
    for file, size in files.items():
        path = folder / file
        actual = path.stat().st_size if path.exists() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise UserError(f"data set '{name}' is damaged: {path} {state}; {remedy}")
    return True


def _write_and_rename(name: str, version: int, folder: Path, write: Callable[[Path], None]) -> None:
    """The caller holds the lock, so every other temporary folder belongs to a build that died."""
    prefix = f".{folder.name}.tmp-"
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        write(temporary)
        files = {str(p.relative_to(temporary)): p.stat().st_size for p in sorted(temporary.rglob("*")) if p.is_file()}
        manifest = {
            "name": name,
            "version": version,
            "files": {f: s for f, s in files.items() if not f.endswith(".npz")},
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.chmod(0o777 & ~_umask())
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
