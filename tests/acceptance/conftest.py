"""Acceptance tests share a stack by profile."""

from __future__ import annotations

from tests.support.stages import (
    pytest_collection_modifyitems,
    pytest_runtest_makereport,
    stage,
    system,
)

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_makereport", "stage", "system"]
