"""Tests of the names that the author of a saga imports: `common` and `orchestrator`."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import common
import orchestrator

DRIVERS = "import sys; assert not {'pika', 'psycopg'} & sys.modules.keys(), 'a driver was loaded'"


@pytest.mark.parametrize("package", [common, orchestrator])
def test_every_public_name_is_there(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        common.nothing  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "imported",
    ["common.messages.envelope", "common.storage.admission", "orchestrator", "examples.trip.saga"],
)
def test_a_pure_module_loads_no_driver(imported: str) -> None:
    subprocess.run([sys.executable, "-c", f"import {imported}; {DRIVERS}"], check=True)
