"""Waiting for a condition with a deadline: the only way that chaos sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.03


class ExperimentError(Exception):
    """Something the experiment asked for, waited for or must find was not there."""


def poll(condition: Callable[[], T], within: float, every: float = POLL_SECONDS) -> T:
    """Return the condition's first true value, or its last value when the time is up."""
    deadline = time.monotonic() + within
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(every)
    return value


def until(condition: Callable[[], T | None], what: str, within: float = WITHIN_SECONDS) -> T:
    """Return the condition's first true value. Raises ExperimentError when the time is up."""
    if value := poll(condition, within):
        return value
    raise ExperimentError(f"not within {within} s: {what}")
