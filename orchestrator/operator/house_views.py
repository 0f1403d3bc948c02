"""What the operator's API says of people, of services and of the house: made from what was read.

Owns: the shape of these answers. Must not know: HTTP, SQL.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from common.messages.contracts import AccountRow, ProcessView, StockRow
from orchestrator.operator.audit import REMEDIES
from orchestrator.operator.auditor import AuditedPage
from orchestrator.operator.doctor import House, diagnose
from orchestrator.operator.schemas import NEXT
from orchestrator.runtime.actions import RecordedAction


class WatchedRow(BaseModel):
    """A customer on the watch list."""

    model_config = ConfigDict(from_attributes=True)
    customer: str
    actor: str
    reason: str
    added_at: datetime


class WatchList(BaseModel):
    customers: list[WatchedRow]
    next: str | None = Field(description=NEXT)


class ActionRow(BaseModel):
    """What a person did, or wanted to do and was refused."""

    id: int
    at: datetime
    actor: str
    action: str
    saga_id: UUID | None
    about: str | None = Field(description="what else: a step, a dead letter, a customer")
    reason: str
    outcome: str = Field(description="done, or refused")
    detail: str | None = Field(description="why it was refused; what came of it")

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


class Actions(BaseModel):
    actions: list[ActionRow]
    next: int | None = Field(description=NEXT)


class Stock(BaseModel):
    stock: list[StockRow]
    next: str | None = Field(description=NEXT)


class Accounts(BaseModel):
    accounts: list[AccountRow]
    next: str | None = Field(description=NEXT)


class DriftDetail(BaseModel):
    drift: str
    saga_id: UUID
    step: str
    what: str
    remedy: str


class Audit(BaseModel):
    """Of the sagas up to `next`."""

    compared: int
    skipped: int = Field(description="under way, or of a saga whose ends are not known here")
    drift: list[DriftDetail]
    next: UUID | None = Field(description=NEXT)

    @classmethod
    def of(cls, page: AuditedPage) -> Audit:
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
    """`ok`: no finding is an error. What could not be looked at is null, and a finding."""

    ok: bool
    findings: list[FindingDetail]
    processes: list[ProcessView] | None
    queues: list[QueueDetail] | None

    @classmethod
    def of(cls, seen: House) -> Diagnosis:
        findings = [FindingDetail.model_validate(finding) for finding in diagnose(seen)]
        queues = seen.queues
        return cls(
            ok=all(finding.severity != "error" for finding in findings),
            findings=findings,
            processes=None if seen.processes is None else list(seen.processes),
            queues=None if queues is None else [QueueDetail.model_validate(q) for q in queues],
        )
