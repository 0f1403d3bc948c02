"""Acceptance tests share a stack by profile (tests/support/stages.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stages import pytest_runtest_makereport, stage, system

__all__ = ["pytest_runtest_makereport", "stage", "system"]

LONGEST_SECONDS = 240  # of a test that brings a stack up, on a machine that does much else


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("acceptance")
            item.add_marker(pytest.mark.timeout(LONGEST_SECONDS))
