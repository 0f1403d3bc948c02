"""Why an instance stands still, and what a person can do about it. Pure.

Owns: telling the causes apart, from its row and the last trouble in its log. Must not know: where
either is kept, who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.engine.decide import Entry
from orchestrator.engine.definition import COMPENSATING, Definition, Kind
from orchestrator.engine.instance import Instance

JUDGED_WITHIN_SECONDS = 60.0
"""A deadline is judged within a second; one that is longer behind has nobody to judge it."""


class Cause(StrEnum):
    UNDEPLOYED = "version_not_deployed"
    UNJUDGEABLE = "cannot_be_judged"
    UNBEGUN = "not_begun"
    UNJUDGED = "deadline_not_judged"
    DEAD_LETTER = "dead_letter"
    SILENT = "silent"


@dataclass(frozen=True)
class Standstill:
    cause: Cause
    why: str
    remedy: str


REMEDIES: Mapping[Cause, str] = {
    Cause.UNDEPLOYED: "deploy a release that has it: it goes on by itself, and nothing is lost",
    Cause.UNJUDGEABLE: "deploy a release that can (a default for what it lacks, or the release"
    " before): it goes on by itself, and nothing is lost",
    Cause.UNBEGUN: "saga dead-letters list says why; once that is repaired, redrive it",
    Cause.UNJUDGED: "saga doctor: is an orchestrator ready, and does it read its replies?",
    Cause.DEAD_LETTER: "repair what it says, then saga retry ID, or redrive the dead letter"
    " (saga dead-letters list)",
    Cause.SILENT: "saga doctor: is that service up? Once it is, saga retry ID asks again at once",
}
BY_HAND = "; what no machine can do any more: saga resolve ID {step} --reason ..."


def standstill(
    definition: Definition | None,
    instance: Instance,
    *,
    undeployed: bool,
    unjudgeable: str | None,
    overdue_seconds: float,
    trouble: Entry | None,
) -> Standstill:
    """`trouble` is the last entry of its log that tells of any."""
    version = f"{instance.definition} v{instance.version}"
    if unjudgeable is not None:
        return _of(Cause.UNJUDGEABLE, f"cannot be judged: {unjudgeable}")
    if undeployed:
        return _of(Cause.UNDEPLOYED, f"version not deployed: no orchestrator knows {version}")
    legs = list(instance.timed_legs())
    if not legs:
        return _of(Cause.UNBEGUN, "what was to start it is a dead letter")
    if overdue_seconds > JUDGED_WITHIN_SECONDS:
        why = f"its deadline passed {overdue_seconds:.0f} s ago and nobody has judged it"
        return _of(Cause.UNJUDGED, why)
    name, direction = legs[0]
    step = definition.by_name.get(name) if definition else None
    whom = step.participant if step else "its participant"
    what = f"the undo of {name}" if direction is COMPENSATING else name
    if step is not None and step.kind is Kind.PIVOT:
        what = f"whether {name} happened"
    hint = BY_HAND.format(step=name) if step is None or step.kind is not Kind.PIVOT else ""
    if trouble is not None and trouble.entry in ("dead_lettered", "discarded"):
        said = f"{what} is a dead letter: {trouble.detail or 'no reason given'}"
        return _of(Cause.DEAD_LETTER, said, hint)
    return _of(Cause.SILENT, f"no answer from {whom}: {what}", hint)


def _of(cause: Cause, why: str, hint: str = "") -> Standstill:
    return Standstill(cause, why, REMEDIES[cause] + hint)


def when_overdue(next_deadline: datetime | None, now: datetime) -> float:
    """For how many seconds nobody has judged it."""
    return max(0.0, (now - next_deadline).total_seconds()) if next_deadline else 0.0
