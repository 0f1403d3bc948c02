"""An entry of the saga log: its kind, and what it is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from common.messages.envelope import Direction


class EntryKind(StrEnum):
    """The kinds of entries that this release writes; a log may hold others."""

    STARTED = "started"
    SENT = "sent"
    DONE = "done"
    REFUSED = "refused"
    FENCED = "fenced"
    IGNORED = "ignored"
    TIMED_OUT = "timed_out"
    DEAD_LETTERED = "dead_lettered"
    DISCARDED = "discarded"
    STUCK = "stuck"
    TURNED = "turned"
    COMPLETED = "completed"
    COMPENSATED = "compensated"
    PARKED = "parked"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    COMPENSATE_ASKED = "compensate_asked"
    CANCEL_REFUSED = "cancel_refused"
    RETRY_ASKED = "retry_asked"
    RESOLVED = "resolved"
    ACTION_DONE = "action_done"
    ACTION_REFUSED = "action_refused"
    HELD = "held"
    UNDEPLOYED = "undeployed"
    UNJUDGEABLE = "unjudgeable"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the saga log."""

    kind: str
    """An EntryKind, or as read from a log that another release has written."""
    step: str | None = None
    direction: Direction | None = None
    attempt: int | None = None
    detail: str | None = None
    answered_by: str | None = None
