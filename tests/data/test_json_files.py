"""JSON and JSON lines: nothing in a file is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from loongforge.config.errors import UserError
from loongforge.data.sample import SampleError
from loongforge.data.sources import open_sources


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("two.json", '[{"id": "a", "text": "x"}]\n[{"id": "b", "text": "y"}]', "Something stands behind the list"),
        ("more.json", '[{"id": "a", "text": "x"}] more', "Something stands behind the list"),
    ],
)
def test_nothing_behind_a_list_is_lost(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_sources(str(tmp_path / name), "data.train")


def test_a_line_that_is_a_list_is_one_bad_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '[{"id": "a", "text": "x"}]\n{"id": "b", "text": "y"}\n{"id": "c", "text": "z"}\n'
    )
    ((source, _),) = open_sources(str(tmp_path / "a.jsonl"), "data.train")
    assert len(source) == 3
    with pytest.raises(SampleError, match="not a JSON object"):
        source.load(0)
    assert source.load(2).id == "c"
