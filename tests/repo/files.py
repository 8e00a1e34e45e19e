"""The repo's files, as its tests look at them."""

from __future__ import annotations

import subprocess
from pathlib import Path

REPO = Path(__file__).parents[2]
SOURCES = (REPO / "loongforge", REPO / "backends")


def repo_files() -> list[Path]:
    """Files that git has or would take; without git, all but hidden and built ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
        files = [REPO / line for line in found.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        built = ("build", "dist", "runs", "data", "multirun")
        roots = [path for path in REPO.iterdir() if path.name not in built and not path.name.startswith(".")]
        files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*"))]
        files = [file for file in files if "__pycache__" not in file.parts and ".egg-info" not in str(file)]
    return sorted(file for file in files if file.is_file())


def python_files() -> list[Path]:
    """Every Python file of the repo."""
    return [file for file in repo_files() if file.suffix == ".py"]


def source_modules() -> dict[str, Path]:
    """Importable name -> file, of all that is packaged."""
    found = {}
    for root, name in zip(SOURCES, ("loongforge", "loongforge_backends"), strict=True):
        for file in sorted(root.rglob("*.py")):
            parts = [name, *file.relative_to(root).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found
