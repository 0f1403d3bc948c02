"""Distinguish errors of the deployed code from those of single messages (rule 13, ADR 27). Pure."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

from common.messages.envelope import Key

WINDOW_SECONDS = 60.0
_NEVER = float("-inf")


@dataclass
class _Error:
    text: str = ""
    failed: dict[Key, float] = field(default_factory=dict)  # when each message last failed by it
    times: int = 0


class BadDeployDetector:
    """Detects a bad deploy: the same error `limit` times. Two rules say what is counted.

    - Once a handler has succeeded: different messages. One counts for WINDOW_SECONDS after its
      failure, and for longer while no handler has succeeded since.
    - Before any handler has succeeded: failures, be they all of one message.

    `now` is any monotonic clock's, in seconds.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._errors: dict[str, _Error] = {}  # by type and place: its text may name the message
        self.last_success = _NEVER

    def record_failure(self, key: Key, error: Exception, now: float) -> None:
        """Record that handling this message raised, and not because a server was down."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {frame.name}:{frame.lineno}"
        known = self._errors.setdefault(where, _Error())
        known.text = f"{where}: {error}"
        known.failed[key] = now
        known.times += 1

    def record_success(self, keys: Iterable[Key], now: float, *, handlers_ran: bool = True) -> None:
        """Record that these were handled; their earlier failures no longer count.

        If no handler ran (repeats need none), this is no success of a handler.
        """
        if handlers_ran:
            self.last_success = now
        if self._errors:
            for key in keys:
                for error in self._errors.values():
                    error.failed.pop(key, None)

    def verdict(self, now: float) -> str | None:
        """Return the error that makes this a bad deploy, or None."""
        any_success = self.last_success != _NEVER
        counts_from = min(now - WINDOW_SECONDS, self.last_success)
        for where, error in list(self._errors.items()):
            error.failed = {key: at for key, at in error.failed.items() if at > counts_from}
            if not error.failed:
                del self._errors[where]
            elif (len(error.failed) if any_success else error.times) >= self._limit:
                return error.text
        return None
