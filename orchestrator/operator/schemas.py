"""What the operator's API says of sagas, made from what was read.

Owns: the shape of these answers. Must not know: HTTP, SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from orchestrator.engine.definition import Definition, Kind
from orchestrator.engine.instance import Instance
from orchestrator.operator.queries import Logged, Parked, Stuck
from orchestrator.operator.stuck import standstill, when_overdue
from orchestrator.operator.timeline import tell
from orchestrator.runtime.census import Seen

Definitions = Mapping[tuple[str, int], Definition]
NEXT = "pass as `after` for the next page; null: no more"
UNKNOWN = "unknown"  # of a definition that is not deployed here


class Awaited(BaseModel):
    """An answer that is waited for."""

    step: str
    direction: str
    participant: str
    attempt: int
    deadline: datetime = Field(description="then it is asked for again, or given up")


class SagaRow(BaseModel):
    """An instance as it stands."""

    saga_id: UUID
    definition: str
    state: str
    reason: str | None = Field(description="why it was turned back")
    pivot_passed: bool = Field(description="from there on it only goes forward")
    stuck_since: datetime | None
    awaits: list[Awaited]
    started_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    data: dict[str, Any] = Field(description="what it was started with")

    @classmethod
    def fields_of(cls, definitions: Definitions, seen: Seen) -> dict[str, Any]:
        instance = seen.instance
        return {
            "saga_id": instance.saga_id,
            "definition": f"{instance.definition} v{instance.version}",
            "state": instance.state,
            "reason": instance.reason,
            "pivot_passed": instance.pivot_passed,
            "stuck_since": seen.stuck_since,
            "awaits": _awaits(definition_of(definitions, instance), seen),
            "started_at": seen.started_at,
            "updated_at": seen.updated_at,
            "ended_at": seen.ended_at,
            "data": dict(instance.data),
        }

    @classmethod
    def of(cls, definitions: Definitions, seen: Seen) -> SagaRow:
        return cls(**cls.fields_of(definitions, seen))


class SagaPage(BaseModel):
    sagas: list[SagaRow]
    next: UUID | None = Field(description=NEXT)


class StuckRow(SagaRow):
    """An instance that stands still: why, since when it is tried, and what to type."""

    cause: str = Field(description="one of a few words, for programs")
    standstill: str = Field(description="why it stands still")
    remedy: str
    last_trouble: str | None = Field(description="the last its log tells of")
    last_trouble_at: datetime | None
    next_try: datetime | None

    @classmethod
    def why(cls, definitions: Definitions, stuck: Stuck, now: datetime) -> StuckRow:
        seen, trouble = stuck.seen, stuck.trouble
        definition = definition_of(definitions, seen.instance)
        still = standstill(
            definition,
            seen.instance,
            undeployed=seen.row.undeployed,
            unjudgeable=seen.row.undecidable,
            overdue_seconds=when_overdue(seen.next_deadline, now),
            trouble=trouble.entry if trouble else None,
        )
        return cls(
            **cls.fields_of(definitions, seen),
            cause=still.cause,
            standstill=still.why,
            remedy=still.remedy,
            last_trouble=tell(definition, trouble.entry, trouble.at) if trouble else None,
            last_trouble_at=trouble.at if trouble else None,
            next_try=seen.next_deadline,
        )


class StuckPage(BaseModel):
    stuck: list[StuckRow]
    next: UUID | None = Field(description=NEXT)


class ReconciledRow(BaseModel):
    """An instance that was found, and what became of it."""

    saga_id: UUID
    state: str = Field(description="when it was found")
    standstill: str
    became: str | None = Field(description="what was done about it; null: nothing, a dry run")

    @classmethod
    def of(
        cls, definitions: Definitions, stuck: Stuck, now: datetime, became: Mapping[UUID, str]
    ) -> ReconciledRow:
        row = StuckRow.why(definitions, stuck, now)
        return cls(
            saga_id=row.saga_id,
            state=row.state,
            standstill=row.standstill,
            became=became.get(row.saga_id),
        )


class Reconciled(BaseModel):
    dry_run: bool
    sagas: list[ReconciledRow]
    next: UUID | None = Field(description=NEXT)


class WaitingRow(BaseModel):
    """An instance parked at a gate: who is to decide about what, since when, until when."""

    saga_id: UUID
    definition: str
    gate: str
    why: str | None = Field(description="why a person is asked")
    waiting_since: datetime
    expires_at: datetime = Field(description="then it is undone, unless somebody decides")
    customer: str | None
    total: int | None = Field(description="in minor units of the currency")
    currency: str | None
    held: list[Any] = Field(description="what is held for it meanwhile")

    @classmethod
    def of(cls, parked: Parked) -> WaitingRow:
        seen = parked.seen
        instance, data = seen.instance, seen.instance.data
        gate = instance.waiting_at() or ""
        return cls(
            saga_id=instance.saga_id,
            definition=f"{instance.definition} v{instance.version}",
            gate=gate,
            why=parked.why,
            waiting_since=_time(seen, gate, "issued"),
            expires_at=_time(seen, gate, "deadline"),
            customer=data.get("customer"),
            total=data.get("total"),
            currency=data.get("currency"),
            held=list(data.get("lines", ())),
        )


class WaitingPage(BaseModel):
    waiting: list[WaitingRow]
    next: UUID | None = Field(description=NEXT)


class StepDetail(BaseModel):
    """A step of an instance. Its deadline is that of the answer it waits for."""

    step: str
    kind: str
    participant: str
    status: str
    attempts: int = 0
    undo_attempts: int = 0
    first_sent_at: datetime | None = None
    undo_first_sent_at: datetime | None = None
    deadline: datetime | None = None


class SagaDetail(SagaRow):
    compensate_asked: bool
    pivot: str | None = Field(description="the step that is the point of no return")
    steps: list[StepDetail]

    @classmethod
    def of(cls, definitions: Definitions, seen: Seen) -> SagaDetail:
        definition = definition_of(definitions, seen.instance)
        steps = definition.steps if definition else ()
        return cls(
            **cls.fields_of(definitions, seen),
            compensate_asked=seen.instance.compensate_asked,
            pivot=next((s.name for s in steps if s.kind is Kind.PIVOT), None),
            steps=_steps(definition, seen),
        )


class TimelineEntry(BaseModel):
    """A line of the saga log; `told` says it in words."""

    id: int
    at: datetime
    entry: str
    step: str | None
    direction: str | None
    attempt: int | None
    detail: str | None
    process: str = Field(description="the orchestrator that wrote it")
    answered_by: str | None = Field(description="the process that handled the command")
    told: str

    @classmethod
    def of(cls, definition: Definition | None, logged: Logged) -> TimelineEntry:
        entry = logged.entry
        return cls(
            id=logged.id,
            at=logged.at,
            entry=entry.entry,
            step=entry.step,
            direction=entry.direction,
            attempt=entry.attempt,
            detail=entry.detail,
            process=logged.process,
            answered_by=entry.answered_by,
            told=tell(definition, entry, logged.at),
        )


class Timeline(BaseModel):
    saga_id: UUID
    ended: bool = Field(description="nothing more will be decided; late answers are still noted")
    entries: list[TimelineEntry]
    next: int = Field(description="pass as `after` for what follows, or is written later")


def definition_of(definitions: Definitions, instance: Instance) -> Definition | None:
    """That under which it began; None if it is not deployed here."""
    return definitions.get((instance.definition, instance.version))


def _awaits(definition: Definition | None, seen: Seen) -> list[Awaited]:
    return [
        Awaited(
            step=name,
            direction=direction,
            participant=_participant(definition, name),
            attempt=attempt,
            deadline=_time(seen, name, "deadline"),
        )
        for (name, direction), attempt in seen.instance.timed_legs().items()
    ]


def _steps(definition: Definition | None, seen: Seen) -> list[StepDetail]:
    names = dict.fromkeys([*(definition.by_name if definition else ()), *seen.instance.steps])
    return [_step(definition, seen, name) for name in names]


def _step(definition: Definition | None, seen: Seen, name: str) -> StepDetail:
    known = definition.by_name.get(name) if definition else None
    kind, participant = (known.kind if known else UNKNOWN), _participant(definition, name)
    progress = seen.instance.steps.get(name)
    if progress is None:
        return StepDetail(step=name, kind=kind, participant=participant, status="not_sent")
    return StepDetail(
        step=name,
        kind=kind,
        participant=participant,
        status=progress.status,
        attempts=progress.attempt,
        undo_attempts=progress.undo_attempt,
        first_sent_at=_time(seen, name, "issued"),
        undo_first_sent_at=_time(seen, name, "undo_issued"),
        deadline=_time(seen, name, "deadline"),
    )


def _participant(definition: Definition | None, step: str) -> str:
    known = definition.by_name.get(step) if definition else None
    return known.participant if known else UNKNOWN


def _time(seen: Seen, step: str, which: str) -> Any:
    """As a time, or None where it has none."""
    seconds = seen.row.times.get(step, {}).get(which)
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
