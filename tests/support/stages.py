"""Stacks for the tests of whole systems: real servers, real processes, one profile at a time.

A stack is shared by the tests of its profile. A failed test may leave it in any state, so the next
test gets a new one.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from chaos.runtime import Plan, choose
from chaos.runtime.base import Runtime
from chaos.stack.system import FAULT_SETTINGS, System
from tests.servers import chosen_for_stacks

CONSUMERS = ("orchestrator", "order", "payment", "inventory")
IN_THE_FLOW = (*CONSUMERS, "door")
NOT_NEEDED = {"operator": 0}

PROFILES = {
    # The defaults, but a lost StartSaga is sent again sooner.
    "plain": Plan(replicas=NOT_NEEDED, settings={"start_resend_seconds": "1"}),
    # Three of each consumer. Nothing is resent in a test's time, so what one process drops stays
    # lost: in the other profiles a resend would heal it.
    "replicas": Plan(
        replicas={**NOT_NEEDED, **dict.fromkeys(CONSUMERS, 3)},
        settings={"step_timeout_seconds": "600", "start_resend_seconds": "600"},
    ),
    # Timeouts within seconds, and the operator's API.
    "impatient": Plan(settings=FAULT_SETTINGS),
    # As before, but the orchestrator is of the previous release until a test replaces it.
    "previous-release": Plan(
        settings=FAULT_SETTINGS, entry={"orchestrator": "tests.previous_release orchestrator"}
    ),
    # Inventory is of the previous release until a test replaces it. Nothing is resent in a test's
    # time: only an operator can move a saga on.
    "defective": Plan(
        settings={
            "step_timeout_seconds": "600",
            "resend_cap_seconds": "600",
            "start_resend_seconds": "1",
            "bad_deploy_pause_seconds": "0.5",
            "bad_deploy_pause_cap_seconds": "0.5",
        },
        entry={"inventory": "tests.previous_release inventory_svc"},
    ),
}


WHOLE_STACKS = {"acceptance", "drills"}  # folders
LONGEST_SECONDS = 240  # of a test that brings a stack up, on a busy machine
FAILED = pytest.StashKey[bool]()


def on(*profiles: str) -> pytest.MarkDecorator:
    """Run the marked tests on a stack of each of these profiles."""
    return pytest.mark.parametrize("stage", profiles, indirect=True, scope="session")


class Stage:
    """The stack of one profile, brought up when first used, and again after `end()`."""

    def __init__(self, profile: str) -> None:
        self._plan = PROFILES[profile]
        self._runtime: Runtime = choose(chosen_for_stacks(), f"acceptance-{os.getpid()}-{profile}")
        self._system: System | None = None

    def system(self) -> System:
        if self._system is None:
            endpoints = self._runtime.up(self._plan, tethered=True)
            self._system = System(self._plan, self._runtime, endpoints)
        return self._system

    def end(self) -> None:
        if self._system is not None:
            self._system.close()
            self._system = None
        self._runtime.down()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WHOLE_STACKS & {folder.name for folder in item.path.parents}:
            item.add_marker("acceptance")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONGEST_SECONDS))


@pytest.fixture(scope="session")
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage(request.param)
    yield stage
    stage.end()


@pytest.fixture
def system(stage: Stage, request: pytest.FixtureRequest) -> Iterator[System]:
    yield stage.system()
    if request.node.stash.get(FAILED, False):
        stage.end()


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
            account = f"unavailable: {error!r}"
        report.sections.append(("the system", account))
    return report
