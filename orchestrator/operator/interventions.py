"""Endpoints for stuck sagas and gates: retry, compensate, resolve, reconcile, approve, reject.

What an intervention leads to is decided by the engine; a refusal comes back as a 409.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Path
from pydantic import Field

from common.http.app import Caller, Problem, Refused, problems
from common.messages.errors import IllegalTransition
from common.messages.shop.values import Name
from orchestrator.operator.backend import Backend
from orchestrator.operator.queries import StuckFilter
from orchestrator.operator.requests import (
    LONGEST,
    Limit,
    Reasoned,
    SagaId,
    Seconds,
    existing_saga,
    named_saga,
)
from orchestrator.operator.schemas import (
    Reconciled,
    ReconciledRow,
    SagaDetail,
    StuckPage,
    StuckRow,
    WaitingPage,
    WaitingRow,
    definition_of,
)
from orchestrator.operator.stuck import OVERDUE_SECONDS
from orchestrator.operator.timeline import describe

MOST_AT_ONCE = 200  # instances of one reconciliation; their rows are locked together
MAY_ACT = problems(403, 404, 409, 422, 503)


class Reconciliation(Reasoned):
    dry_run: bool = Field(False, description="only return what would be done")
    step: Name | None = Field(None, description="the step whose reply is awaited")
    older_than: float | None = Field(
        None, ge=0, le=LONGEST, description="started more than so many seconds ago"
    )
    limit: int = Field(MOST_AT_ONCE, ge=1, le=MOST_AT_ONCE)
    after: str | None = Field(None, description="the `next` of the answer before")


class GateDecision(Reasoned):
    gate: Name | None = Field(
        None, description="the gate that was looked at; without: whichever it waits at"
    )


def add_interventions(app: FastAPI, backend: Backend) -> None:
    """Add the endpoints of stuck sagas and of gates."""
    _stuck(app, backend)
    _acts(app, backend)
    _gates(app, backend)


def _stuck(app: FastAPI, backend: Backend) -> None:
    queries, definitions = backend.queries, backend.definitions

    @app.get("/stuck", responses=problems(404, 422, 503))
    async def stuck(
        step: Name | None = None,
        older_than: Seconds = None,
        limit: Limit = 100,
        after: UUID | None = None,
    ) -> StuckPage:
        """List sagas past their SLA, or overdue and not checked, with the cause. Oldest first."""
        which = StuckFilter(step, older_than, OVERDUE_SECONDS)
        last = None if after is None else await named_saga(queries, str(after))
        found, now = await queries.stuck(which, last, limit), datetime.now(UTC)
        return StuckPage(
            stuck=[StuckRow.why(definitions, one, now) for one in found],
            next=found[-1].seen.instance.saga_id if len(found) == limit else None,
        )

    @app.post("/reconcile", responses=MAY_ACT)
    async def reconcile(asked: Reconciliation, caller: Caller) -> Reconciled:
        """Check the deadlines that have passed and send again what is stuck, of many sagas."""
        last = None if asked.after is None else await named_saga(queries, asked.after)
        which = StuckFilter(asked.step, asked.older_than, 0)
        found = await queries.stuck(which, last, asked.limit)
        became: Mapping[UUID, str] = {}
        if not asked.dry_run:
            if why := await backend.services.backlog():
                remedy = (
                    f"{why}: deadlines are checked once that is done, or an outage would use up"
                )
                remedy += " every attempt. See saga doctor, then ask again"
                raise Refused(409, Problem(error="not_caught_up", remedy=remedy))
            ids = [one.seen.instance.saga_id for one in found]
            became = await backend.service.reconcile(ids, caller.name, asked.reason)
        now = datetime.now(UTC)
        return Reconciled(
            dry_run=asked.dry_run,
            sagas=[ReconciledRow.of(definitions, one, now, became) for one in found],
            next=found[-1].seen.instance.saga_id if len(found) == asked.limit else None,
        )


def _acts(app: FastAPI, backend: Backend) -> None:
    queries, service = backend.queries, backend.service

    @app.post("/sagas/{saga_id}/retry", responses=MAY_ACT)
    async def retry(saga_id: SagaId, asked: Reasoned, caller: Caller) -> SagaDetail:
        """Send again now what the saga waits for: the same messages, without using an attempt."""
        ident = (await named_saga(queries, saga_id)).instance.saga_id
        return await _acted(ident, service.retry(ident, caller.name, asked.reason))

    @app.post("/sagas/{saga_id}/compensate", responses=MAY_ACT)
    async def compensate(saga_id: SagaId, asked: Reasoned, caller: Caller) -> SagaDetail:
        """Undo what was done. Refused after the pivot; if that is unknown, its fence decides."""
        ident = (await named_saga(queries, saga_id)).instance.saga_id
        return await _acted(ident, service.compensate(ident, caller.name, asked.reason))

    @app.post("/sagas/{saga_id}/steps/{step}/resolve", responses=MAY_ACT)
    async def resolve(
        saga_id: SagaId, step: Annotated[Name, Path()], asked: Reasoned, caller: Caller
    ) -> SagaDetail:
        """Record that an undo, or a step after the pivot, was done by hand. Never the pivot."""
        ident = (await named_saga(queries, saga_id)).instance.saga_id
        return await _acted(ident, service.resolve(ident, step, caller.name, asked.reason))

    async def _acted(saga_id: UUID, act: Awaitable[object]) -> SagaDetail:
        try:
            await act
        except IllegalTransition as refusal:
            problem = Problem(error="refused", field="saga_id", remedy=str(refusal))
            raise Refused(409, problem) from refusal
        return SagaDetail.of(backend.definitions, await named_saga(queries, str(saga_id)))


def _gates(app: FastAPI, backend: Backend) -> None:
    queries, definitions = backend.queries, backend.definitions

    @app.get("/waiting", responses=problems(404, 422, 503))
    async def waiting(
        customer: Name | None = None, limit: Limit = 100, after: UUID | None = None
    ) -> WaitingPage:
        """List sagas parked at a gate, for a person to decide; those waiting longest first."""
        last = None if after is None else await existing_saga(queries, after)
        found = await queries.waiting(customer, last, limit)
        return WaitingPage(
            waiting=[WaitingRow.of(parked) for parked in found],
            next=found[-1].seen.instance.saga_id if len(found) == limit else None,
        )

    @app.post("/sagas/{saga_id}/approve", responses=problems(403, 404, 409, 422, 503))
    async def approve(saga_id: SagaId, decision: GateDecision, caller: Caller) -> SagaDetail:
        """Let a parked saga through its gate. 409: it waits at none, or is decided already."""
        return await _decide(saga_id, decision, caller.name, approved=True)

    @app.post("/sagas/{saga_id}/reject", responses=problems(403, 404, 409, 422, 503))
    async def reject(saga_id: SagaId, decision: GateDecision, caller: Caller) -> SagaDetail:
        """Compensate a parked saga: what was done is undone, and the order is rejected."""
        return await _decide(saga_id, decision, caller.name, approved=False)

    async def _decide(
        saga_id: str, decision: GateDecision, actor: str, *, approved: bool
    ) -> SagaDetail:
        seen = await named_saga(queries, saga_id)
        ident = seen.instance.saga_id
        try:
            await backend.service.decide_gate(
                ident, approved=approved, actor=actor, reason=decision.reason, gate=decision.gate
            )
        except IllegalTransition as error:
            raise await _not_waiting(backend, ident, str(error)) from error
        return SagaDetail.of(definitions, await existing_saga(queries, ident))


async def _not_waiting(backend: Backend, saga_id: UUID, why: str) -> Refused:
    """Return the refusal: who decided what and when, or that the saga is not at its gate."""
    seen = await existing_saga(backend.queries, saga_id)
    decided = await backend.queries.last_decision(saga_id)
    if decided is None:
        remedy = f"{why}: it is {seen.instance.state}. GET /waiting lists what waits"
        return Refused(409, Problem(error="not_waiting", field="saga_id", remedy=remedy))
    decision = describe(
        definition_of(backend.definitions, seen.instance), decided.entry, decided.at
    )
    remedy = f"{decision}, at {decided.at:%Y-%m-%d %H:%M:%S %Z}. That stands; GET /sagas/{saga_id}"
    return Refused(409, Problem(error="already_decided", field="saga_id", remedy=remedy))
