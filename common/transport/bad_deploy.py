"""Whose fault an unexpected error is: its message's, or this code's (section 6, rule 13). Pure.

Owns: which messages an error struck, and for how long that counts. Must not know: a clock, and
what is done about it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

from common.messages.envelope import Key

WINDOW_SECONDS = 60.0
_NEVER = float("-inf")


@dataclass
class _Error:
    says: str = ""
    struck: dict[Key, float] = field(default_factory=dict)  # whom, and when last
    times: int = 0


class Suspicion:
    """One error on several different messages is a bad deploy: what it struck within the window,
    and beyond it for as long as nothing went well. Before anything ever did, several times on one
    message are enough: nothing speaks for this code yet. `now` is any clock's, in seconds."""

    def __init__(self, messages: int) -> None:
        """So many different messages make a bad deploy."""
        self._messages = messages
        self._errors: dict[str, _Error] = {}  # by type and place: its text may name the message
        self.last_went_well = _NEVER

    def struck(self, key: Key, error: Exception, now: float) -> None:
        """Handling this message raised, and it was not a server's fault."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} at {frame.name}:{frame.lineno}"
        known = self._errors.setdefault(where, _Error())
        known.says = f"{where}: {error}"
        known.struck[key] = now
        known.times += 1

    def went_well(self, keys: Iterable[Key], now: float, *, acted: bool = True) -> None:
        """These were handled; if an error ever struck them, it does no more. `acted`: the code
        that may be broken ran for them."""
        if acted:
            self.last_went_well = now
        if self._errors:
            for key in keys:
                for error in self._errors.values():
                    error.struck.pop(key, None)

    def bad_deploy(self, now: float) -> str | None:
        """The error that speaks against this code; None if none does."""
        unproven = self.last_went_well == _NEVER
        counts_from = min(now - WINDOW_SECONDS, self.last_went_well)
        for where, error in list(self._errors.items()):
            error.struck = {key: at for key, at in error.struck.items() if at > counts_from}
            if not error.struck:
                del self._errors[where]
            elif (error.times if unproven else len(error.struck)) >= self._messages:
                return error.says
        return None
