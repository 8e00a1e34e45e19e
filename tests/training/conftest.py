"""Data that the trainer's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, built once."""
    from loongforge.data.builtin import build

    return build("digits_vqa", tmp_path_factory.mktemp("data") / "digits_vqa")
