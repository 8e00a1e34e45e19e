"""One process that is a whole world."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from loongforge.kernels.backend import select
from loongforge.parallel.layout import Layout
from tests.support.tiny import tiny_config

BACKEND = select("auto")
BACKEND.activate()


@pytest.fixture(scope="module")
def groups() -> Iterator[Any]:
    """Process groups of a world of one."""
    from loongforge.parallel.groups import make_groups
    from loongforge.parallel.session import joined_world

    with joined_world(BACKEND):
        yield make_groups(Layout.from_model(tiny_config().model, 1), "gloo")
