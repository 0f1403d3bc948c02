"""Tell errors of the deployed code from errors of single messages (rule 13, ADR 27). Pure."""

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
    """Detects a bad deploy: the same error on several different messages.

    A failure counts for WINDOW_SECONDS, and for longer as long as no handler has succeeded since.
    Before any handler ever succeeded, the same error so many times on one message is enough:
    nothing speaks for this code yet. `now` is any monotonic clock's, in seconds.
    """

    def __init__(self, messages: int) -> None:
        """Take how many different messages make a bad deploy."""
        self._messages = messages
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

        Only where handlers ran does this speak for the code: repeats succeed without them.
        """
        if handlers_ran:
            self.last_success = now
        if self._errors:
            for key in keys:
                for error in self._errors.values():
                    error.failed.pop(key, None)

    def verdict(self, now: float) -> str | None:
        """Return the error that makes this a bad deploy, or None."""
        unproven = self.last_success == _NEVER
        counts_from = min(now - WINDOW_SECONDS, self.last_success)
        for where, error in list(self._errors.items()):
            error.failed = {key: at for key, at in error.failed.items() if at > counts_from}
            if not error.failed:
                del self._errors[where]
            elif (error.times if unproven else len(error.failed)) >= self._messages:
                return error.text
        return None
