"""Every command of the documentation runs, in order, as a reader would run it. Training is cut to two steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks
from tests.repo.files import REPO

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), REPO / "CONTRIBUTING.md"]
_TINY = "trainer.steps=2 trainer.eval_samples=8 trainer.generate_samples=1"
_TRAINS = re.compile(r"\bloongforge train\b")
# What may stand in a block that is marked `test: skip`: CI runs these itself.
_SKIPPABLE = re.compile(r"bash scripts/(quickstart|test)\.sh\b.*")
_TIMEOUT_S = 300


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    given = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**given, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def _run(block: Block, folder: Path) -> None:
    tiny = [f"{command} {_TINY}" if _TRAINS.search(command) else command for command in block.commands()]
    script = "\n".join(["set -euo pipefail", *tiny])
    ran = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, f"{block.page}:{block.line}\n{script}\n{ran.stdout}\n{ran.stderr}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As quickstart leaves it: a run in runs/llava_sft/, its data in data/."""
    folder = tmp_path_factory.mktemp("reader")
    _run(Block(Path(__file__), 0, "bash", "loongforge train +recipe=llava_sft", ""), folder)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_page_run(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "bash" and not block.is_skipped:
            _run(block, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_only_what_ci_runs_is_skipped(page: Path) -> None:
    skipped = [command for block in blocks(page) if block.is_skipped for command in block.commands()]
    assert not [command for command in skipped if not _SKIPPABLE.fullmatch(command)]
    assert page.read_text(encoding="utf-8").count("\n<!-- test: skip") == sum(b.is_skipped for b in blocks(page))


def test_broken_command_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unknown key"):
        _run(
            Block(Path("page.md"), 3, "bash", "loongforge plan +recipe=llava_sft trainer.stepz=1  # typo\ntrue", ""),
            tmp_path,
        )


def test_blocks_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n```bash\nx \\\n  y  # why\n# note\nz a#b\n```\n<!-- file: f.py -->\n```python\n1\n```\n")
    first, second = blocks(page)
    assert (first.line, first.commands(), first.file) == (2, ["x    y", "z a#b"], None)
    assert (second.file, second.text) == ("f.py", "1\n")
