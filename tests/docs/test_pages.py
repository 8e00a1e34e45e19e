"""What the pages say about the repo is so: tables of keys, links, names of folders."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from tests.docs.test_commands import PAGES
from tests.repo.files import REPO


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_key_tables", REPO / "scripts" / "write_key_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_tables_of_keys_are_up_to_date(writer: ModuleType) -> None:
    page = writer.PAGE.read_text(encoding="utf-8")
    assert writer.with_tables(page) == page, "run: python scripts/write_key_tables.py"


def test_every_key_says_what_it_means(writer: ModuleType) -> None:
    rows = [row for row in writer.tables().splitlines() if row.startswith("| `")]
    assert len(rows) > 60
    assert not [row for row in rows if row.endswith("|  |")]


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http") and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_every_room_is_described() -> None:
    text = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [entry.name for entry in (REPO / "loongforge").iterdir() if (entry / "__init__.py").is_file()]
    assert not [room for room in rooms if f"  {room}/" not in text]
