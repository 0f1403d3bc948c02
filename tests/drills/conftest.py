"""Drills bring up stacks of their own, or share one by profile (tests/support/stages.py); each may
take a while on a machine that does much else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stages import pytest_runtest_makereport, stage, system

__all__ = ["pytest_runtest_makereport", "stage", "system"]

LONGEST_SECONDS = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("acceptance")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONGEST_SECONDS))
