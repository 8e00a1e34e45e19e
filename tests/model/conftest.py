"""One process that is a whole world."""

from tests.components.conftest import groups

__all__ = ["groups"]
