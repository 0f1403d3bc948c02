"""What the run says of itself: which servers it used; and in CI, that nothing was skipped."""

from __future__ import annotations

import os
import signal

import pytest
import structlog

from tests.servers import chosen, chosen_for_stacks

# What runs in the background of a shell is born deaf to these, and so are its children: the
# stacks and shells that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Its own default draws every exception with all locals, which takes the better part of a second.
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
    """SAGAPROOF_NO_SKIPS=1, as .ci/run sets it: what should run and was skipped is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("SAGAPROOF_NO_SKIPS"):
        return
    skipped = reporter.stats.get("skipped", [])
    if skipped and exitstatus == 0:
        reporter.write_line(f"{len(skipped)} skipped where nothing may be: a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
