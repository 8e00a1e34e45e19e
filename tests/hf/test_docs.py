"""The table of families says what there is."""

from __future__ import annotations

from loongforge.checkpoint.families.registry import families
from tests.hf.cases import CASES
from tests.repo.files import REPO

PAGE = (REPO / "docs" / "huggingface.md").read_text()


def _rows() -> dict[str, str]:
    table = PAGE.partition("## Families")[2]
    return {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")}


def test_every_family_and_model_type_is_in_the_table() -> None:
    rows = _rows()
    for family in families():
        for model_type in family.model_types:
            assert f"`{model_type}`" in rows[family.name]


def test_every_family_is_compared_with_transformers() -> None:
    compared = {case.model(0).config.model_type for case in CASES.values()}
    assert compared == {name for family in families() for name in family.model_types}
    table = PAGE.partition("## Families")[2]
    assert all(f"`{type(case.model(0)).__name__}`" in table for case in CASES.values())
