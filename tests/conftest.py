"""Signals, logging and the report of a test run; in CI, a skipped test is a failure."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest
import structlog

from tests.servers import chosen, chosen_for_stacks

# A background job of a shell ignores these signals, and so would its children, which tests
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# An example's time says how busy the machine is.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

# structlog's default renders every exception with all locals, which takes most of a second.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_report_header() -> str:
    return (
        f"servers: {chosen()}; whole stacks: {chosen_for_stacks()} (RUNTIME=docker|native chooses)"
    )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the run if a test was skipped and SAGAPROOF_NO_SKIPS is set, as .ci/run does."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("SAGAPROOF_NO_SKIPS"):
        return
    skipped = reporter.stats.get("skipped", [])
    if skipped and exitstatus == 0:
        reporter.write_line(f"{len(skipped)} skipped, and SAGAPROOF_NO_SKIPS is set", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
