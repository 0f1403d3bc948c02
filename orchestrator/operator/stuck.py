"""The cause and the remedy of a stuck saga, from its row and its log. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.engine.definition import COMPENSATING, Definition, Kind
from orchestrator.engine.instance import Instance
from orchestrator.engine.saga_log import Entry, EntryKind

OVERDUE_SECONDS = 60.0
"""Orchestrators check a deadline within a second; one so long past is not being checked."""


class Cause(StrEnum):
    UNDEPLOYED = "version_not_deployed"
    UNJUDGEABLE = "cannot_be_judged"
    UNBEGUN = "not_begun"
    UNJUDGED = "deadline_not_judged"
    DEAD_LETTER = "dead_letter"
    SILENT = "silent"


@dataclass(frozen=True)
class StuckBecause:
    """The cause of a stuck saga, in words, with what to do."""

    cause: Cause
    why: str
    remedy: str


REMEDIES: Mapping[Cause, str] = {
    Cause.UNDEPLOYED: "deploy a release that has it: the saga resumes by itself, and nothing is"
    " lost",
    Cause.UNJUDGEABLE: "deploy a release that can (a default for what it lacks, or the previous"
    " release): the saga resumes by itself, and nothing is lost",
    Cause.UNBEGUN: "saga dead-letters list shows why; once the cause is repaired, redrive it",
    Cause.UNJUDGED: "saga doctor: is an orchestrator ready, and does it read its replies?",
    Cause.DEAD_LETTER: "repair the reason given, then saga retry ID, or redrive the dead letter"
    " (saga dead-letters list)",
    Cause.SILENT: "saga doctor: is that service up? Once it is, saga retry ID sends again at once",
}
BY_HAND = (
    "; if the service can never do it, do it by hand, then: saga resolve ID {step} --reason ..."
)


def explain(
    definition: Definition | None,
    instance: Instance,
    *,
    undeployed: bool,
    unjudgeable: str | None,
    overdue_seconds: float,
    trouble: Entry | None,
) -> StuckBecause:
    """Find the cause. `trouble` is the last entry of the log that reports any."""
    version = f"{instance.definition} v{instance.version}"
    if unjudgeable is not None:
        return _of(Cause.UNJUDGEABLE, f"this release cannot decide about it: {unjudgeable}")
    if undeployed:
        return _of(Cause.UNDEPLOYED, f"its definition version is not deployed: {version}")
    legs = list(instance.timed_legs())
    if not legs:
        return _of(Cause.UNBEGUN, "the message that starts it is a dead letter")
    if overdue_seconds > OVERDUE_SECONDS:
        why = f"its deadline passed {overdue_seconds:.0f} s ago and no orchestrator has checked it"
        return _of(Cause.UNJUDGED, why)
    name, direction = legs[0]
    step = definition.by_name.get(name) if definition else None
    participant = step.participant if step else "its participant"
    what = f"the undo of {name}" if direction is COMPENSATING else name
    if step is not None and step.kind is Kind.PIVOT:
        what = f"whether {name} happened"
    hint = BY_HAND.format(step=name) if step is None or step.kind is not Kind.PIVOT else ""
    if trouble is not None and trouble.kind in (EntryKind.DEAD_LETTERED, EntryKind.DISCARDED):
        said = f"{what} is a dead letter: {trouble.detail or 'no reason given'}"
        return _of(Cause.DEAD_LETTER, said, hint)
    return _of(Cause.SILENT, f"no answer from {participant}: {what}", hint)


def _of(cause: Cause, why: str, hint: str = "") -> StuckBecause:
    return StuckBecause(cause, why, REMEDIES[cause] + hint)


def when_overdue(next_deadline: datetime | None, now: datetime) -> float:
    """Return how many seconds ago the deadline passed."""
    return max(0.0, (now - next_deadline).total_seconds()) if next_deadline else 0.0
