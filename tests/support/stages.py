"""Stacks for the tests of whole systems: real servers, real processes, one profile at a time.

A stack is shared by the tests of its profile. After a failure nobody knows what it is in, so
the next test gets a new one.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from chaos.runtime import choose
from chaos.runtime.base import Runtime
from chaos.stack.system import System
from tests.servers import chosen_for_stacks
from tests.support.profiles import PROFILES

FAILED = pytest.StashKey[bool]()


class Stage:
    """The stack of one profile, up when first asked for, and again after it was condemned."""

    def __init__(self, profile: str) -> None:
        self._plan = PROFILES[profile]
        self._runtime: Runtime = choose(chosen_for_stacks(), f"acceptance-{os.getpid()}-{profile}")
        self._system: System | None = None

    def system(self) -> System:
        if self._system is None:
            endpoints = self._runtime.up(self._plan, tethered=True)
            self._system = System(self._plan, self._runtime, endpoints)
        return self._system

    def condemn(self) -> None:
        if self._system is not None:
            self._system.close()
            self._system = None
        self._runtime.down()


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(request.param)
    yield stage
    stage.condemn()


@pytest.fixture
def system(stage: Stage, request: pytest.FixtureRequest) -> Iterator[System]:
    yield stage.system()
    if request.node.stash.get(FAILED, False):
        stage.condemn()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    system = getattr(item, "funcargs", {}).get("system")
    if report.when == "call" and report.failed and isinstance(system, System):
        item.stash[FAILED] = True
        try:
            account = system.account()
        except Exception as error:  # noqa: BLE001 - the test's own failure is what counts
            account = f"cannot be told: {error!r}"
        report.sections.append(("the system", account))
    return report
