"""The shape of the operator's API answers, and how each is made from what was read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from common.messages.contracts import ProcessView
from common.messages.shop.inventory import StockRow
from common.messages.shop.payment import AccountRow
from orchestrator.engine.definition import Definition, Kind
from orchestrator.engine.instance import Instance
from orchestrator.operator.audit import REMEDIES
from orchestrator.operator.auditor import AuditPage
from orchestrator.operator.doctor import SystemStatus, diagnose
from orchestrator.operator.queries import LogEntry, Parked, Stuck
from orchestrator.operator.stuck import explain, when_overdue
from orchestrator.operator.timeline import describe
from orchestrator.runtime.actions import RecordedAction
from orchestrator.runtime.census import Seen

Definitions = Mapping[tuple[str, int], Definition]
NEXT = "pass as `after` for the next page; null: no more"
UNKNOWN = "unknown"  # a step of a definition that is not deployed here


class Awaited(BaseModel):
    """A reply that a saga waits for."""

    step: str
    direction: str
    participant: str
    attempt: int
    deadline: datetime = Field(description="when the command is sent again, or the step given up")


class SagaRow(BaseModel):
    """A saga instance."""

    saga_id: UUID
    definition: str
    state: str
    reason: str | None = Field(description="why it was compensated")
    pivot_passed: bool = Field(description="after the pivot a saga only goes forward")
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
    """A stuck saga: the cause, the last trouble, and what to type."""

    cause: str = Field(description="the cause as a fixed word, for programs")
    standstill: str = Field(description="why it is stuck")
    remedy: str
    last_trouble: str | None = Field(description="the last trouble in its log")
    last_trouble_at: datetime | None
    next_try: datetime | None

    @classmethod
    def why(cls, definitions: Definitions, stuck: Stuck, now: datetime) -> StuckRow:
        seen, trouble = stuck.seen, stuck.trouble
        definition = definition_of(definitions, seen.instance)
        found = explain(
            definition,
            seen.instance,
            undeployed=seen.row.undeployed,
            unjudgeable=seen.row.unjudgeable,
            overdue_seconds=when_overdue(seen.next_deadline, now),
            trouble=trouble.entry if trouble else None,
        )
        return cls(
            **cls.fields_of(definitions, seen),
            cause=found.cause,
            standstill=found.why,
            remedy=found.remedy,
            last_trouble=describe(definition, trouble.entry, trouble.at) if trouble else None,
            last_trouble_at=trouble.at if trouble else None,
            next_try=seen.next_deadline,
        )


class StuckPage(BaseModel):
    stuck: list[StuckRow]
    next: UUID | None = Field(description=NEXT)


class ReconciledRow(BaseModel):
    """A saga that was found stuck or overdue, and what was done."""

    saga_id: UUID
    state: str = Field(description="as it was found")
    standstill: str
    became: str | None = Field(description="what was done; null in a dry run")

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
    """A saga parked at a gate: what a person decides about, since when and until when."""

    saga_id: UUID
    definition: str
    gate: str
    why: str | None = Field(description="why a person must decide")
    waiting_since: datetime
    expires_at: datetime = Field(description="when it is compensated unless a person decides")
    customer: str | None
    total: int | None = Field(description="in minor units of the currency")
    currency: str | None
    held: list[Any] = Field(description="what is held in stock for it")

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
    """A step of a saga. Its deadline is that of the reply it waits for."""

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
    pivot: str | None = Field(description="the step after which there is no way back")
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
    """An entry of the saga log; `told` is the entry in words."""

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
    def of(cls, definition: Definition | None, log_entry: LogEntry) -> TimelineEntry:
        entry = log_entry.entry
        return cls(
            id=log_entry.id,
            at=log_entry.at,
            entry=entry.kind,
            step=entry.step,
            direction=entry.direction,
            attempt=entry.attempt,
            detail=entry.detail,
            process=log_entry.process,
            answered_by=entry.answered_by,
            told=describe(definition, entry, log_entry.at),
        )


class Timeline(BaseModel):
    saga_id: UUID
    ended: bool = Field(description="nothing more is decided; late replies are still logged")
    entries: list[TimelineEntry]
    next: int = Field(description="pass as `after` for the entries that follow")


class WatchedRow(BaseModel):
    """A customer on the watch list."""

    model_config = ConfigDict(from_attributes=True)
    customer: str
    actor: str
    reason: str
    added_at: datetime


class WatchListPage(BaseModel):
    customers: list[WatchedRow]
    next: str | None = Field(description=NEXT)


class ActionRow(BaseModel):
    """An action of an operator, done or refused."""

    id: int
    at: datetime
    actor: str
    action: str
    saga_id: UUID | None
    about: str | None = Field(description="a step, a dead letter or a customer")
    reason: str
    outcome: str = Field(description="done, or refused")
    detail: str | None = Field(description="why it was refused, or its result")

    @classmethod
    def of(cls, recorded: RecordedAction) -> ActionRow:
        action = recorded.action
        return cls(
            id=recorded.id,
            at=recorded.at,
            actor=action.actor,
            action=action.action,
            saga_id=action.saga_id,
            about=action.about,
            reason=action.reason,
            outcome=action.outcome,
            detail=action.detail,
        )


class ActionPage(BaseModel):
    actions: list[ActionRow]
    next: int | None = Field(description=NEXT)


class StockRows(BaseModel):
    stock: list[StockRow]
    next: str | None = Field(description=NEXT)


class AccountRows(BaseModel):
    accounts: list[AccountRow]
    next: str | None = Field(description=NEXT)


class DriftDetail(BaseModel):
    drift: str
    saga_id: UUID
    step: str
    what: str
    remedy: str


class Audit(BaseModel):
    """The comparison of the sagas up to `next`."""

    compared: int
    skipped: int = Field(
        description="not ended, or of a definition that the audit has no table for"
    )
    drift: list[DriftDetail]
    next: UUID | None = Field(description=NEXT)

    @classmethod
    def of(cls, page: AuditPage) -> Audit:
        found = page.compared
        return cls(
            compared=found.compared,
            skipped=found.skipped,
            drift=[
                DriftDetail(
                    drift=each.drift,
                    saga_id=each.saga_id,
                    step=each.step,
                    what=each.what,
                    remedy=REMEDIES[each.drift],
                )
                for each in found.findings
            ],
            next=page.looked_to,
        )


class QueueDetail(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    name: str
    exists: bool
    ready: int
    consumers: int


class FindingDetail(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    severity: str
    about: str
    what: str
    remedy: str


class Diagnosis(BaseModel):
    """`ok`: no finding is an error. What could not be read is null, and a finding says so."""

    ok: bool
    findings: list[FindingDetail]
    processes: list[ProcessView] | None
    queues: list[QueueDetail] | None

    @classmethod
    def of(cls, seen: SystemStatus) -> Diagnosis:
        findings = [FindingDetail.model_validate(finding) for finding in diagnose(seen)]
        queues = seen.queues
        return cls(
            ok=all(finding.severity != "error" for finding in findings),
            findings=findings,
            processes=None if seen.processes is None else list(seen.processes),
            queues=None if queues is None else [QueueDetail.model_validate(q) for q in queues],
        )


def definition_of(definitions: Definitions, instance: Instance) -> Definition | None:
    """Return the definition that the instance began under, or None if it is not deployed here."""
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
    """Return one of a step's times, or None."""
    seconds = seen.row.times.get(step, {}).get(which)
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
