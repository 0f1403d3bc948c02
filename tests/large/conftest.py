"""One native stack for each test of size, and the memory of its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.runtime import Endpoints
from chaos.runtime.native.runtime import NativeRuntime

Up = tuple[NativeRuntime, Endpoints]

SAGA = Path(__file__).parents[2] / ".venv" / "bin" / "saga"
RESIDENT_KIB = 200 * 1024  # the limit of every process that takes part


@pytest.fixture
def stack(request: pytest.FixtureRequest) -> Iterator[Up]:
    """Bring up the PLAN of the test's module."""
    runtime = NativeRuntime(f"large-{os.getpid()}")
    try:
        yield runtime, runtime.up(request.module.PLAN, tethered=True)
    finally:
        runtime.down()


def peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if "VmHWM" in line).split()[1])
