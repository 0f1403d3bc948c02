"""Drills bring up stacks of their own, or share one by profile."""

from __future__ import annotations

from tests.support.stages import (
    pytest_collection_modifyitems,
    pytest_runtest_makereport,
    stage,
    system,
)

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_makereport", "stage", "system"]
